"""The files that the scripts leave in output/."""

import os
import shutil
import time

from pyimagesearch import config

from . import files


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
    """Keep other trainings out of output/, and remove the partial files of a killed one."""
    files.lock_folder(os.path.dirname(config.SETTINGS_PATH), "another training")
    for folder in {os.path.dirname(path) for path in output_paths()}:
        files.remove_partials(folder)


def set_aside_run():
    """Move what an earlier run left in output/ into a folder under output/; return the folder.
    Where only settings.json is left, the run trained nothing, and the next may overwrite it: then
    return None."""
    found = [path for path in output_paths() if os.path.exists(path)]
    output = os.path.dirname(config.SETTINGS_PATH)
    # has its final name once it is complete: the next start completes one that is killed here
    moving = os.path.join(output, "run-moving")
    isMoving = os.path.exists(moving) and os.listdir(moving)
    if found in ([], [config.SETTINGS_PATH]) and not isMoving:
        return None
    os.makedirs(moving, exist_ok=True)
    # the settings first, as without them the rest is no run that could be resumed
    for path in found:
        # over what a start left half copied that was killed between two disks
        shutil.move(path, os.path.join(moving, os.path.basename(path)))
    times = [os.path.getmtime(os.path.join(moving, name)) for name in os.listdir(moving)]
    folder = os.path.join(output, time.strftime("run-%Y-%m-%d-%H%M%S", time.localtime(max(times))))
    while os.path.exists(folder):
        folder += "-again"
    os.rename(moving, folder)
    advice = "to continue that run, move them back and add --resume"
    print(f"[INFO] the files of an earlier run were moved to {folder}; {advice}...")
    return folder


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
    for product in output_paths():
        if os.path.basename(product) != os.path.basename(place):
            continue
        if folder == os.path.realpath(os.path.dirname(product)):
            return True
        output = os.path.realpath(os.path.dirname(config.SETTINGS_PATH))
        isMoved = os.path.basename(folder).startswith(("run-", "evaluation-"))
        if isMoved and os.path.dirname(folder) == output:
            return True
    return False
