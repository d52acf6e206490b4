"""The names of classes: as labels in config.py, as folders, as an ImageFolder lists them."""

import os
import unicodedata

from pyimagesearch import config


def normalize_name(name):
    """Return the name of a label or folder as names are compared: lower case; slash, backslash,
    hyphen and space as underscore; accents composed."""
    name = unicodedata.normalize("NFC", name).strip().lower()
    return name.translate(str.maketrans("/\\- ", "____"))


def get_classes(labels=None):
    """Return the class names of labels (default: CLASSES), as an ImageFolder names and sorts them:
    a label with a slash makes nested folders, of which the outer one is the class."""
    if labels is None:
        labels = config.CLASSES
    return sorted({label.split("/")[0] for label in labels})


def index_labels(labels=None):
    """Return {folder name as names are compared: label} for labels (default: CLASSES)."""
    if labels is None:
        labels = config.CLASSES
    return {normalize_name(label): label for label in labels}


def split_label(path, labels):
    """Return (label, path in the class) of an image in a class folder.

    path: below the folder of its split, as "noodles/pasta/2023/0.jpg", which gives
    ("Noodles/Pasta", "2023/0.jpg"). labels: of index_labels(). Returns (None, path) if the folder
    is no class.
    """
    folders = path.split(os.sep)
    # the folder of Noodles/Pasta may be one in another
    for count in range(1, len(folders)):
        label = labels.get(normalize_name(os.sep.join(folders[:count])))
        if label is not None:
            return label, os.path.join(*folders[count:])
    return None, path
