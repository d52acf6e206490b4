"""Mistakes of the user's, each of which a script prints as one line."""


class UserError(Exception):
    """What is wrong, where, and what to do about it."""


class ImageError(UserError):
    """A UserError about one image, raised by the process that reads it."""
