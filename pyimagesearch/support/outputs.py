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


def lock_output():
    """Keep other trainings out of output/, and remove the partial files of a killed one. Raises
    UserError if another training is there, or if a run could not write its files."""
    files.lock_folder(os.path.dirname(config.SETTINGS_PATH), "another training")
    for folder in {os.path.dirname(path) or "." for path in output_paths()}:
        files.make_folder(folder)
        files.remove_partials(folder)


def set_aside_run():
    """Move what an earlier run left in output/ into a folder under output/, all of it or nothing;
    return the folder. Where only settings.json is left, the run trained nothing, and the next may
    overwrite it: then return None. Raises UserError if another program holds a file."""
    found = []
    for path in output_paths():
        found += files.list_versions(path)
    output = os.path.dirname(config.SETTINGS_PATH)
    # has its final name once it is complete: the next start completes one that is killed here
    moving = os.path.join(output, "run-moving")
    isMoving = os.path.exists(moving) and os.listdir(moving)
    if found in ([], [config.SETTINGS_PATH]) and not isMoving:
        return None
    move_run(found, moving)
    times = [os.path.getmtime(os.path.join(moving, name)) for name in os.listdir(moving)]
    folder = os.path.join(output, time.strftime("run-%Y-%m-%d-%H%M%S", time.localtime(max(times))))
    while os.path.exists(folder):
        folder += "-again"
    files.retry(os.rename, moving, folder)
    advice = "to continue that run, move them back and add --resume"
    print(f"[INFO] the files of an earlier run were moved to {folder}; {advice}...")
    return folder


def move_run(paths, folder):
    """Move the files at paths, those of a run, into folder, all of them or none. Raises UserError
    if another program holds one."""
    os.makedirs(folder, exist_ok=True)
    # the settings first, as without them the rest is no run that could be resumed
    for path in paths:
        try:
            # over what a start left half copied that was killed between two disks
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
                # which was copied to folder by half, from another disk
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
