# How the scripts end on what the user can put right.

# import the necessary packages
import sys


class UserError(Exception):
    """What the user can put right: the message says what is wrong, where, and what to do."""


def run(main):
    """Call main; a UserError, or an error of the file system, ends it in one line on stderr and
    exit status 1."""
    # a log file shows each line at once, not when training is over
    sys.stdout.reconfigure(line_buffering=True)
    try:
        main()
    except UserError as error:
        sys.exit(f"[ERROR] {error}")
    except OSError as error:
        sys.exit(f"[ERROR] {error.filename}: {error.strerror}")
