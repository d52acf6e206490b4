"""The files in output/: who may write them, and where those of an earlier run go."""

import os
import shutil
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from helpers import DEFAULTS, hold, read_tree

from pyimagesearch import config
from pyimagesearch.support import files, outputs
from pyimagesearch.support.errors import UserError
from pyimagesearch.support.outputs import is_output, make_evaluation_folder, set_aside_run


def test_all_that_config_names_as_written_is_of_a_run_its_settings_first():
    paths = []
    for name in DEFAULTS:
        if name.endswith("_PATH") and name not in ("DATA_PATH", "BASE_PATH"):
            paths.append(getattr(config, name))
    assert sorted(outputs.output_paths()) == sorted(paths)
    assert outputs.output_paths()[0] == config.SETTINGS_PATH


def test_the_litter_of_a_killed_training_goes_and_nothing_else():
    config.MODEL_PATH = "models[1]/weights.pth"
    for path in (config.CHECKPOINT_PATH, config.MODEL_PATH):
        files.write_file(path, b"whole")
        Path(os.path.dirname(path), ".host-123.partial").touch()
    Path("output/notes.partial").touch()
    outputs.lock_output()
    assert set(read_tree()) == {"checkpoint.pth", "notes.partial"}
    assert set(read_tree("models[1]")) == {"weights.pth"}


def test_output_is_of_one_training_which_the_other_does_not_disturb():
    files.write_file("output/.host-123.partial", b"of the one that trains")
    with FileLock("output/.lock"):
        with pytest.raises(UserError, match="another training is running in .*output"):
            outputs.lock_output()
    assert list(read_tree()) == [".host-123.partial"]
    outputs.lock_output()
    with pytest.raises(Timeout):
        FileLock("output/.lock").acquire(blocking=False)


@pytest.mark.parametrize("name", ["MODEL_PATH", "CHECKPOINT_PATH", "HISTORY_PATH"])
def test_trainings_in_two_directories_that_share_a_folder_of_outputs_disturb_none(
    name, tmp_path, monkeypatch
):
    ending = os.path.splitext(getattr(config, name))[1]
    setattr(config, name, str(tmp_path / f"large disk/food{ending}"))
    outputs.lock_output()
    files.write_file(getattr(config, name), b"of the first")
    files.write_file(tmp_path / "large disk/.host-123.partial", b"of the first")
    before = read_tree("large disk")
    # another process has other locks
    monkeypatch.setattr(files, "FileLock", lambda path, **_: FileLock(path))
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(UserError, match="another training is running in .*large disk"):
        outputs.lock_output()
    assert read_tree(tmp_path / "large disk") == before


def test_partial_files_stay_where_a_folder_cannot_be_locked(monkeypatch):
    files.write_file("output/.host-123.partial", b"of another training")
    monkeypatch.setattr(files, "lock_folder", lambda *args, **options: False)
    outputs.lock_output()
    assert os.path.exists("output/.host-123.partial")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        # in two folders: both would be output/run-.../food.pth
        ("CHECKPOINT_PATH", "MODEL_PATH"),
        ("CONFUSION_PATH", "MISTAKES_PATH"),
        ("PREDICTIONS_PATH", "PHOTOGRAPHS_PATH"),
    ],
)
def test_two_outputs_of_one_name_are_refused_before_one_overwrites_the_other(name, other):
    ending = os.path.splitext(getattr(config, name))[1]
    (first, second) = (f"a/food{ending}", f"b/Food{ending}")
    setattr(config, name, first)
    setattr(config, other, second)
    with pytest.raises(UserError, match="same name.* in config.py") as caught:
        outputs.check_output_paths()
    assert first in str(caught.value) and second in str(caught.value)
    setattr(config, other, "b/other" + ending)
    outputs.check_output_paths()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("PLOT_PATH", "output/plot.pdf"),
        ("CONFUSION_PATH", "output/confusion.svg"),
        ("MISTAKES_PATH", "output/mistakes.jpg"),
        ("RESULTS_PATH", "output/results"),
        ("PHOTOGRAPHS_PATH", "output/photographs.xlsx"),
        ("HISTORY_PATH", "output/history.tsv"),
        ("PREDICTIONS_PATH", "output/predictions.txt"),
    ],
)
def test_an_ending_that_is_not_that_of_what_is_written_is_refused(name, path):
    wanted = os.path.splitext(getattr(config, name))[1]
    setattr(config, name, path)
    with pytest.raises(UserError, match=f"{path} must end in {wanted}"):
        outputs.check_output_paths()
    setattr(config, name, Path("output/other" + wanted.upper()))
    outputs.check_output_paths()


def write_run(text, seconds=1e9):
    """Write all files of a run at this time; return their bytes by their names."""
    for number, path in enumerate(outputs.output_paths()):
        files.write_file(path, f"{text} {path}".encode())
        os.utime(path, (seconds - number,) * 2)
    return {os.path.basename(path): f"{text} {path}".encode() for path in outputs.output_paths()}


def read_runs():
    """Return what the folders of earlier runs hold, in the order of their names."""
    return [read_tree(folder) for folder in sorted(Path("output").glob("run-*"))]


def test_earlier_runs_are_kept_together_even_two_of_one_second(capsys):
    config.MODEL_PATH = "models/weights.pth"
    files.write_file("output/notes.txt", b"")
    set_aside_run()
    assert (os.listdir("output"), capsys.readouterr().out) == (["notes.txt"], "")
    for text in ("first", "second"):
        expected = write_run(text)
        set_aside_run()
        (line,) = capsys.readouterr().out.splitlines()
        (folder,) = [path for path in Path("output").iterdir() if f"{path};" in line]
        # after the time of its last file
        assert folder.name.startswith(time.strftime("run-%Y-%m-%d-%H%M%S", time.localtime(1e9)))
        assert "move the new files away, move these back, and add --resume" in line
        assert read_tree(folder) == expected
    assert len(os.listdir("output")) == len(["notes.txt", "first", "second"])


def test_predictions_without_a_run_are_moved_aside_but_are_no_run_to_continue(capsys):
    files.write_file(config.PHOTOGRAPHS_PATH, b"path")
    folder = set_aside_run()
    out = capsys.readouterr().out
    assert f"moved to {folder}" in out
    assert "resume" not in out
    assert set(read_tree(folder)) == {"photographs.csv"}


def test_a_run_that_trained_nothing_is_not_moved(capsys):
    files.write_file(config.SETTINGS_PATH, b"settings")
    set_aside_run()
    assert set(read_tree()) == {"settings.json"}
    assert capsys.readouterr().out == ""


class Killed(BaseException):
    """Stands for a process that is killed."""


def make_killer(function, count):
    """Return function, but killed at its call of this number."""
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) > count:
            raise Killed
        return function(*args)

    return call


@pytest.mark.parametrize("count", range(9))
def test_a_move_that_is_killed_anywhere_is_completed_by_the_next_start(count, monkeypatch):
    expected = write_run("first")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(files, "move_file", make_killer(files.move_file, count))
        set_aside_run()
    # the settings first, as without them the rest is no run that could be resumed
    assert set(os.listdir("output/run-moving")) == set(list(expected)[:count])
    assert [path.name for path in Path("output").glob("run-*")] == ["run-moving"]
    set_aside_run()
    assert read_runs() == [expected]
    assert not os.path.exists("output/run-moving")


def test_a_move_that_is_killed_before_the_folder_has_its_name_is_completed(monkeypatch):
    expected = write_run("first")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        # files.move_file() renames too
        numFiles = len(expected)
        patch.setattr(os, "rename", make_killer(os.rename, numFiles))
        set_aside_run()
    assert read_tree("output/run-moving") == expected
    set_aside_run()
    assert read_runs() == [expected]
    # and then there is nothing left to do
    set_aside_run()
    assert read_runs() == [expected]


def test_settings_that_are_left_of_a_move_that_was_killed_go_to_the_rest():
    expected = write_run("first")
    os.mkdir("output/run-moving")
    # what is left could be taken for a run that trained nothing
    for path in outputs.output_paths()[1:]:
        shutil.move(path, "output/run-moving")
    set_aside_run()
    assert read_runs() == [expected]


def test_a_file_that_was_half_copied_from_another_disk_is_moved_again():
    # files.move_file() copies there, and a killed one leaves a half and the whole
    expected = write_run("first")
    files.write_file("output/run-moving/food_classifier.pth", b"fir")
    shutil.move(config.SETTINGS_PATH, "output/run-moving")
    set_aside_run()
    assert read_runs() == [expected]


@pytest.mark.parametrize("name", ["settings.json", "predictions.csv", "results.png"])
def test_a_run_of_which_a_file_is_held_is_not_moved_and_leaves_no_folder(name, monkeypatch):
    config.MODEL_PATH = "models/weights.pth"
    expected = write_run("first")
    before = (read_tree(), read_tree("models"))
    with monkeypatch.context() as patch:
        hold(patch, name)
        for _ in range(2):
            with pytest.raises(UserError, match=f"output/{name} .* cannot be moved aside.*close"):
                set_aside_run()
            assert (read_tree(), read_tree("models")) == before
            assert not list(Path("output").glob("run-*"))
    # once it is closed
    set_aside_run()
    assert read_runs() == [expected]


@pytest.mark.parametrize("count", range(16))
def test_a_refused_move_that_is_killed_on_its_way_back_is_no_run_without_its_checkpoint(
    count, monkeypatch
):
    expected = write_run("first")
    with monkeypatch.context() as patch, pytest.raises((Killed, UserError)):
        hold(patch, "results.png")
        patch.setattr(files, "move_file", make_killer(files.move_file, count))
        set_aside_run()
    # --resume continues what has settings
    found = set(read_tree("output")) & set(expected)
    assert "settings.json" not in found or found == set(expected)
    set_aside_run()
    assert read_runs() == [expected]


def test_a_run_moves_though_a_scanner_holds_one_file_for_a_moment(monkeypatch):
    expected = write_run("first")
    hold(monkeypatch, "food_classifier.pth", times=2)
    set_aside_run()
    assert read_runs() == [expected]


def test_a_folder_gets_its_name_though_a_scanner_holds_it_for_a_moment(monkeypatch):
    expected = write_run("first")
    hold(monkeypatch, "run-moving", times=2)
    set_aside_run()
    assert read_runs() == [expected]


def test_a_move_that_was_killed_between_two_disks_and_is_then_refused_keeps_the_whole_file(
    monkeypatch,
):
    expected = write_run("first")
    # the settings are moved, of the weights a half is copied
    os.mkdir("output/run-moving")
    shutil.move(config.SETTINGS_PATH, "output/run-moving")
    files.write_file("output/run-moving/food_classifier.pth", b"fir")
    hold(monkeypatch, "checkpoint.pth")
    with pytest.raises(UserError):
        set_aside_run()
    assert read_tree() == expected


def test_what_was_written_beside_a_held_table_goes_with_its_run(monkeypatch):
    write_run("first")
    files.write_file("output/predictions-again.csv", b"again")
    files.write_file("output/predictions-old.csv", b"of the user")
    expected = read_tree()
    del expected["predictions-old.csv"]
    with monkeypatch.context() as patch, pytest.raises(UserError):
        hold(patch, "model_training.png")
        set_aside_run()
    set_aside_run()
    assert read_runs() == [expected]
    assert [path.name for path in Path("output").glob("*.csv")] == ["predictions-old.csv"]
    assert is_output("output/mistakes-again.png")


def test_a_folder_of_any_output_that_cannot_be_written_is_known_at_the_start():
    # a file is in the place of the folder
    files.write_file("models", b"")
    config.MODEL_PATH = "models/weights.pth"
    with pytest.raises(UserError, match="no file can be written in models "):
        outputs.lock_output()


def test_outputs_may_be_in_the_working_directory_itself():
    (config.SETTINGS_PATH, config.MODEL_PATH) = ("settings.json", "weights.pth")
    outputs.lock_output()
    assert os.path.exists(".lock")


def test_an_evaluation_has_a_folder_of_its_own_named_after_its_weights(monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda text, *_: text.replace("%", ""))
    folders = [make_evaluation_folder("models/best.v2.pth") for _ in range(3)]
    assert len(set(folders)) == 3
    for folder in folders:
        assert os.path.dirname(folder) == "output"
        assert os.path.basename(folder).startswith("evaluation-best.v2-")
        assert os.listdir(folder) == []


def test_what_a_script_drew_is_known_in_output_and_in_the_folders_of_runs_there():
    config.MODEL_PATH = "models/best.pth"
    for folder in ("output", "output/run-2026-01-01-120000", "output/evaluation-best-2026"):
        assert is_output(f"{folder}/mistakes.png")
        assert not is_output(f"{folder}/lunch.png")
    for folder in ("", "photos", "photos/run-2026", "output/holiday"):
        assert not is_output(os.path.join(folder, "mistakes.png"))
    assert is_output("models/best.pth")
    assert not is_output("output/best.pth")
