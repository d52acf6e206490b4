"""The files that the scripts leave in output/."""

import os
import time
from contextlib import suppress

from pyimagesearch import config

from . import files
from .errors import UserError


def output_paths():
    """Return the paths of the files that a run leaves in output/, its settings first."""
    return [
        config.SETTINGS_PATH,
        config.CHECKPOINT_PATH,
        config.MODEL_PATH,
        config.REPORT_PATH,
        config.CONFUSION_PATH,
        config.PREDICTIONS_PATH,
        config.MISTAKES_PATH,
        config.HISTORY_PATH,
        config.PLOT_PATH,
        config.RESULTS_PATH,
        config.PHOTOGRAPHS_PATH,
    ]


def check_output_paths():
    """Raise UserError if two files in output/ have the same name, which would overwrite each other
    when they are moved aside, or if the ending of one is not that of what is written."""
    pictures = (
        config.CONFUSION_PATH,
        config.MISTAKES_PATH,
        config.PLOT_PATH,
        config.RESULTS_PATH,
    )
    tables = (config.PREDICTIONS_PATH, config.HISTORY_PATH, config.PHOTOGRAPHS_PATH)
    for ending, paths in ((".png", pictures), (".csv", tables)):
        for path in paths:
            if not str(path).lower().endswith(ending):
                raise UserError(f"{path} must end in {ending}; change it in config.py")
    firsts = {}
    for path in output_paths():
        # some file systems are case-insensitive
        name = os.path.basename(path).lower()
        if name in firsts:
            both = f"{firsts[name]} and {path}"
            raise UserError(f"{both} have the same name; change one of them in config.py")
        firsts[name] = path


def lock_output():
    """Keep other trainings out of output/, or wherever config.py has its files, and remove the
    partial files of a killed one. Raises UserError if another training is there, or if a run could
    not write its files."""
    for folder in sorted({os.path.dirname(path) or "." for path in output_paths()}):
        if files.lock_folder(folder, "another training"):
            files.remove_partials(folder)


def set_aside_run():
    """Move what an earlier run left in output/ into a folder under output/, all of it or nothing;
    return the folder. Where only settings.json is left, the run trained nothing, and the next may
    overwrite it: then return None. Raises UserError if another program holds a file."""
    found = []
    for path in output_paths():
        found += files.list_versions(path)
    output = os.path.dirname(config.SETTINGS_PATH)
    # renamed when it is complete: if this start is killed, the next one completes the move
    moving = os.path.join(output, "run-moving")
    isMoving = os.path.exists(moving) and os.listdir(moving)
    hasMore = any(path != config.SETTINGS_PATH for path in found)
    if not hasMore and not isMoving:
        return None
    move_run(found, moving)
    times = [os.path.getmtime(os.path.join(moving, name)) for name in os.listdir(moving)]
    latest = time.localtime(max(times))
    folder = os.path.join(output, time.strftime("run-%Y-%m-%d-%H%M%S", latest))
    while os.path.exists(folder):
        folder += "-again"
    files.retry(os.rename, moving, folder)
    if os.path.exists(os.path.join(folder, os.path.basename(config.SETTINGS_PATH))):
        advice = "to continue that run, move the new files away, move these back, and add --resume"
        print(f"[INFO] the files of an earlier run were moved to {folder}; {advice}...")
    else:
        print(f"[INFO] earlier files were moved to {folder}...")
    return folder


def move_run(paths, folder):
    """Move the files at paths, those of a run, into folder, all of them or none. Raises UserError
    if another program holds one."""
    os.makedirs(folder, exist_ok=True)
    # the settings first, as without them the rest is no run that could be resumed
    for path in paths:
        try:
            # overwrites the half copy of a start that was killed between two disks
            files.move_file(path, os.path.join(folder, os.path.basename(path)))
        except PermissionError as error:
            move_back(folder)
            held = f"{path} of an earlier run cannot be moved aside ({error.strerror})"
            advice = "close the program that has it open, or start in another directory"
            raise UserError(f"{held}; {advice}") from error


def move_back(folder):
    """Move the files of a run in folder back to where config.py says."""
    # the settings last, as what is killed before could be resumed without its checkpoint
    for path in reversed(output_paths()):
        for source in files.list_versions(os.path.join(folder, os.path.basename(path))):
            target = os.path.join(os.path.dirname(path), os.path.basename(source))
            if os.path.exists(target):
                # the source is a half copy from another disk
                os.remove(source)
            else:
                files.move_file(source, target)
    # others in it would be the user's
    with suppress(OSError):
        os.rmdir(folder)


def make_evaluation_folder(weightsPath):
    """Make a new folder under output/, which is named after a weights file; return its path."""
    (weights, _) = os.path.splitext(os.path.basename(weightsPath))
    name = time.strftime(f"evaluation-{weights}-%Y-%m-%d-%H%M%S")
    folder = os.path.join(os.path.dirname(config.SETTINGS_PATH), name)
    # two may begin in one second
    while True:
        try:
            os.makedirs(folder)
            return folder
        except FileExistsError:
            folder += "-again"


def is_output(path):
    """Return whether the scripts wrote the file at path: in output/, or in a folder there in which
    an earlier run or an evaluation is."""
    place = os.path.realpath(path)
    folder = os.path.dirname(place)
    # one that write_result() wrote beside another is named after that
    name = os.path.basename(place).replace("-again", "")
    for product in output_paths():
        if os.path.basename(product) != name:
            continue
        if folder == os.path.realpath(os.path.dirname(product)):
            return True
        output = os.path.realpath(os.path.dirname(config.SETTINGS_PATH))
        isMoved = os.path.basename(folder).startswith(("run-", "evaluation-"))
        if isMoved and os.path.dirname(folder) == output:
            return True
    return False
