"""The plan of a data set's copies: label, split and file name of each photograph."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pyimagesearch import config

from .copies import list_copies, normalize_path, read_record
from .errors import ImageError, UserError
from .files import digest_file, name_partial
from .images import find_images, load_image
from .labels import index_labels, split_label
from .progress import progress
from .splits import assign_splits, find_splits, name_split

# bytes of a file name, on nearly all disks
LONGEST_NAME = 255


@dataclass
class Photograph:
    """An image in the data set, and where its copy belongs."""

    path: str
    # the folder of the split that it is in now
    rootDir: str
    # its class, and its path in the folder of its class
    label: str
    name: str
    # TRAIN, VAL or TEST
    destiDir: str | None = None
    # of its bytes, as of those of what lies where its copy belongs, if anything does
    digest: str | None = None
    copyDigest: str | None = None

    @property
    def filename(self):
        """The name of its copy: albums in a class become part of it, as other programs would take
        a folder in dataset/ for a class."""
        return self.name.replace(os.sep, "_")

    def get_place(self, destiDir):
        """Return the path of its copy in destiDir, as paths are compared."""
        return normalize_path(os.path.join(destiDir, self.label, self.filename))

    @property
    def place(self):
        """The path of its copy, as paths are compared."""
        return self.get_place(self.destiDir)

    @property
    def isCopied(self):
        """Whether its copy is there, byte for byte."""
        return self.copyDigest == self.digest


@dataclass
class Plan:
    """Which images are copied where, and which are not.

    rootDirs: of find_splits(). photographs: those to copy. problems: {path of any other image: what
    is wrong with it}. copies: what is in TRAIN, VAL and TEST, of list_copies(). record: of what an
    earlier run copied, of read_record(). seed: by which photographs are held out, None if none are.
    """

    rootDirs: list
    photographs: list
    problems: dict
    copies: dict
    record: dict
    seed: int | None = None

    def list_images(self, rootDir, destiDir):
        """Return the Photographs in rootDir that go to destiDir, in the order of their paths."""
        found = []
        for photograph in self.photographs:
            if (photograph.rootDir, photograph.destiDir) == (rootDir, destiDir):
                found.append(photograph)
        return found

    def get_partial(self, destiDir):
        """Return the path of a file in destiDir that this process alone writes, until it is
        whole."""
        return name_partial(destiDir)


def plan_copies(read_label):
    """Read all images under DATA_PATH, and return the Plan of their copies.

    read_label: returns the label of an image in no class folder, from its file name; raises
    ValueError or IndexError if the name says none. Raises UserError if there is nothing to plan.
    """
    check_paths()
    plan = Plan(find_splits(), [], {}, list_copies(), read_record())
    plan_folders(plan, read_label)
    leave_out_clashes(plan)
    leave_out_unreadable(plan)
    assign_splits(plan)
    for photograph in plan.photographs:
        if photograph.place in plan.copies:
            photograph.copyDigest = digest_file(plan.copies[photograph.place])
    return plan


def check_paths():
    """Raise UserError unless there is something at DATA_PATH, and the copies are apart from it."""
    root = config.DATA_PATH
    if not os.path.isdir(root) or not os.listdir(root):
        advice = "set DATA_PATH in config.py, or draw a sample with --sample"
        raise UserError(f"no photographs at {os.path.abspath(root)}; {advice}")
    for destiDir in (config.BASE_PATH, config.TRAIN, config.VAL, config.TEST):
        # some file systems are case-insensitive
        source = os.path.realpath(root).lower() + os.sep
        copies = os.path.realpath(destiDir).lower() + os.sep
        if source.startswith(copies) or copies.startswith(source):
            text = f"the photographs in {root} and their copies in {destiDir} would mix"
            raise UserError(f"{text}; set another BASE_PATH in config.py")


def plan_folders(plan, read_label):
    """Add the images in the folders of the splits to plan: those of a class, and what is wrong with
    the others. Raises UserError where all training images are in folders that are no classes."""
    loose = []
    for rootDir in dict.fromkeys(plan.rootDirs):
        found = plan_class_folders(plan, rootDir, read_label)
        loose += [(rootDir, path) for path in found]
    # a name is no class index beside class folders, nor in one split where another has them
    hasClassFolders = bool(plan.photographs)
    for rootDir, path in loose:
        if hasClassFolders:
            plan.problems[path] = "in no class folder; move it"
        else:
            plan_loose_image(plan, rootDir, path, read_label)


def plan_class_folders(plan, rootDir, read_label):
    """Add the images in the folders in rootDir, that of a split, to plan; return the paths of those
    in no folder. Raises UserError as plan_folders() does."""
    labels = index_labels()
    # images in no folder, and the names of folders that are classes and that are none
    loose = []
    known = set()
    unknown = set()
    for path in find_images(rootDir):
        below = os.path.relpath(path, rootDir)
        if os.sep not in below:
            loose.append(path)
            continue
        folder = below.split(os.sep)[0]
        (label, name) = split_label(below, labels)
        if label:
            known.add(folder)
            plan.photographs.append(Photograph(path, rootDir, label, name))
        elif name_split(folder, labels):
            text = "in no class folder, but in one that is named like a split; move it"
            plan.problems[path] = text
        else:
            unknown.add(folder)
            text = "the folder is not in CLASSES of config.py; add it there or move it away"
            plan.problems[path] = text
    isTraining = rootDir == plan.rootDirs[0]
    if isTraining and unknown and (known or not are_named_by_class(loose, read_label)):
        folders = sorted(known | unknown)
        print(f"[INFO] to take all folders in {rootDir} as classes: CLASSES = {folders}")
        if not known:
            raise UserError("no folder is in CLASSES of config.py; replace it by the list above")
    return loose


def are_named_by_class(paths, read_label):
    """Return whether the file name of any image says its class."""
    for path in paths:
        try:
            read_label(os.path.basename(path))
            return True
        except (ValueError, IndexError):
            continue
    return False


def plan_loose_image(plan, rootDir, path, read_label):
    """Add an image in no folder to plan, with the label that its name says, or what is wrong."""
    name = os.path.basename(path)
    try:
        label = read_label(name)
    except (ValueError, IndexError):
        indices = f"from 0 to {len(config.CLASSES) - 1} and _"
        plan.problems[path] = f"the name does not begin with a class index {indices}; rename it"
        return
    plan.photographs.append(Photograph(path, rootDir, label, name))


def leave_out_clashes(plan):
    """Take out of plan each image whose copy would overwrite that of an earlier one, or would have
    too long a name."""
    kept = []
    places = {}
    for photograph in plan.photographs:
        first = places.setdefault(photograph.get_place(photograph.rootDir), photograph)
        if first is not photograph:
            text = f"same name and class as another image ({first.path}); rename one"
            plan.problems[photograph.path] = text
        elif len(os.fsencode(photograph.filename)) > LONGEST_NAME:
            text = "with its album the name is too long for a file; shorten it"
            plan.problems[photograph.path] = text
        else:
            kept.append(photograph)
    plan.photographs = kept


def leave_out_unreadable(plan):
    """Read all images; take those that cannot be read out of plan, give the others a digest."""
    kept = []
    with ThreadPoolExecutor() as pool:
        answers = pool.map(read_digest, plan.photographs)
        answers = progress(answers, "checking", "images", total=len(plan.photographs))
        for photograph, answer in zip(plan.photographs, answers, strict=True):
            if isinstance(answer, ImageError):
                plan.problems[photograph.path] = str(answer).removeprefix(f"{photograph.path}: ")
            else:
                photograph.digest = answer
                kept.append(photograph)
    plan.photographs = kept


def read_digest(photograph):
    """Return a digest of a photograph's bytes, or the ImageError if it cannot be read."""
    # read once, as a disk on a network takes its time for each reading
    data = read_file(photograph.path)
    try:
        load_image(photograph.path, config.IMAGE_SIZE, data)
    except ImageError as error:
        return error
    return hashlib.sha256(data).hexdigest()


def read_file(path):
    """Return the bytes of the file at path. Raises OSError with the path, also from reading."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
