"""The values of config.py, flags, and how a script ends."""

import io
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from unittest.mock import Mock

from pyimagesearch import cli, config, devices, sample_dataset
from pyimagesearch.cli import ImageError, UserError, run

import joblib
import numpy as np
import pytest
import torch
from helpers import PROJECT
from torchvision.models import DenseNet121_Weights


def read_config():
    """Return what config.py holds for a user of this machine."""
    return runpy.run_path(str(PROJECT / "pyimagesearch/config.py"))


def test_config_has_the_classes_and_settings_of_the_tutorial():
    found = read_config()
    expected = {"IMAGE_SIZE": 224, "PRED_BATCH_SIZE": 4, "EPOCHS": 20, "LR": 0.0001}
    expected.update(PRETRAINED=True, DATA_PATH="Food-11", BASE_PATH="dataset")
    assert {name: found[name] for name in expected} == expected
    # the order of the class indices in the names of Food-11's files
    assert found["CLASSES"] == list(sample_dataset.DISHES)
    imagenet = DenseNet121_Weights.IMAGENET1K_V1.transforms()
    assert (found["MEAN"], found["STD"]) == (imagenet.mean, imagenet.std)


@pytest.mark.parametrize(
    ("platform", "device", "batchSize", "numWorkers"),
    [("linux", "cuda", 128, 16), ("darwin", "mps", 32, 4), ("win32", "cpu", 32, 4)],
)
def test_config_fits_the_machine(monkeypatch, platform, device, batchSize, numWorkers):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: device == "mps")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 16)
    found = read_config()
    assert found["DEVICE"] == torch.device(device)
    assert (found["LOCAL_BATCH_SIZE"], found["NUM_WORKERS"]) == (batchSize, numWorkers)


def test_scripts_start_without_a_notebooks_backend_and_with_threads_that_sleep(monkeypatch):
    own = {"MPLBACKEND": "TkAgg", "OMP_WAIT_POLICY": "ACTIVE"}
    for given, expected in (
        ({"MPLBACKEND": "module://matplotlib_inline"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (own, own),
    ):
        monkeypatch.setattr(os, "environ", dict(given))
        runpy.run_path(str(PROJECT / "pyimagesearch/__init__.py"))
        assert os.environ == expected


def parse(*flags):
    parser = cli.make_parser("A script.", list(cli.FLAGS), "python script.py --epochs 5")
    return cli.parse_args(parser, flags)


def test_flags_override_config_for_this_run_and_what_they_change_is_printed(capsys):
    (config.EPOCHS, config.PRED_BATCH_SIZE, config.LR) = (7, 5, 0.0001)
    parse(*"--image-size 64 --epochs 3 --lr 1e-4 --no-pretrained".split())
    assert (config.IMAGE_SIZE, config.EPOCHS, config.PRETRAINED) == (64, 3, False)
    assert (config.PRED_BATCH_SIZE, config.LR) == (5, 0.0001)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(" IMAGE_SIZE = 64, EPOCHS = 3, PRETRAINED = False...")
    with pytest.raises(UserError, match="^EPOCHS "):
        parse("--epochs", "0")


def test_help_gives_each_flag_with_the_value_that_config_has(capsys):
    config.EPOCHS = 7
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    for name in cli.FLAGS:
        assert f"--{name.lower().replace('_', '-')}" in text
        assert f"(default: {getattr(config, name)})" in text


def test_config_is_taken_where_its_meaning_is_plain(monkeypatch):
    monkeypatch.setenv("HOME", os.path.abspath("home"))
    (config.DATA_PATH, config.TRAIN) = ("~/photos", Path("~", "dataset", "training"))
    config.DEVICE = "cuda:1"
    # numbers become those that a checkpoint can hold
    (config.MEAN, config.STD) = (np.array([0.5, 0.25, 0.75]), [np.float32(0.5)] * 3)
    config.CLASSES = np.array([" Bread", "Noodles / Pasta ", "Egg"])
    (config.SEED, config.LR, config.EPOCHS) = (np.int64(7), np.float64(0.001), np.float64(2))
    (config.IMAGE_SIZE, config.PRETRAINED) = (np.uint8(64), np.bool_(False))
    cli.check_config()
    found = {name: getattr(config, name) for name in [*cli.FLAGS, "MEAN", "STD", "CLASSES"]}
    assert "np." not in repr(found)
    assert json.loads(json.dumps(found)) == found
    assert (found["SEED"], found["MEAN"]) == (7, [0.5, 0.25, 0.75])
    assert found["CLASSES"] == ["Bread", "Noodles/Pasta", "Egg"]
    assert config.DATA_PATH == os.path.abspath("home/photos")
    assert config.TRAIN == os.path.abspath("home/dataset/training")
    assert config.DEVICE == torch.device("cuda:1")


WRONG = {
    "EPOCHS": [0, 2.5, "20"],
    "LR": [float("nan"), -0.1],
    "PRETRAINED": ["False"],
    "MEAN": [[123.7, 116.3, 103.5], [0.5, 0.5]],
    "STD": [[58.4, 57.1, 57.4]],
    "CLASSES": ["Soup", ["Egg"], ["Egg", "../training"], ["Egg", " "]],
}
# of which two share a folder, on some disk
WRONG["CLASSES"] += [["Egg", "Rice/white", "Rice/brown"], ["egg", "Egg"], ["crème", "cre\u0300me"]]


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_a_setting_that_would_be_wrong_in_silence_is_one_line_that_names_it(name, value):
    setattr(config, name, value)
    with pytest.raises(UserError, match=name) as caught:
        cli.check_config()
    assert "\n" not in str(caught.value)


def read_end(error):
    """End a script with an error; return its line, for which Python's own status is 1."""
    with pytest.raises(SystemExit) as stop:
        run(Mock(side_effect=error), advice="")
    return stop.value.code


def test_a_user_error_is_one_line_of_one_process_and_other_errors_keep_their_traceback(monkeypatch):
    assert read_end(UserError("no data; prepare it")) == "[ERROR] no data; prepare it"
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0, advice="")
    monkeypatch.setattr(devices, "get_rank", lambda: 1)
    monkeypatch.setattr(cli, "distributed", group := Mock())
    assert read_end(UserError("no data; prepare it")) == 1
    assert read_end(ImageError("a.jpg: broken")) == "[ERROR] a.jpg: broken"
    # a lost process would not answer
    group.destroy_process_group.assert_not_called()
    run(Mock(), advice="")
    group.destroy_process_group.assert_called_once()


def test_an_error_on_one_machine_ends_all_and_says_where(monkeypatch):
    check = cli.in_all_processes(lambda: 5)
    assert check() == 5
    for first, text in ((None, "on second: no data"), ("no data", "no data")):
        answers = [(first, "first"), ("no data", "second")]
        monkeypatch.setattr(devices, "all_gather", Mock(return_value=answers))
        with pytest.raises(UserError, match=f"^{text}$"):
            check()


def test_ctrl_c_is_left_to_torchrun_the_shell_and_the_notebook(monkeypatch):
    handlers = []

    def main():
        handlers.append(signal.getsignal(signal.SIGINT))

    with monkeypatch.context() as patch:
        patch.setenv("TORCHELASTIC_RUN_ID", "none")
        run(main, advice="")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    run(main, advice="")
    signal.signal(signal.SIGINT, before)
    # under torchrun processes and workers end at once, as a Python handler waits for its turn
    assert handlers == [signal.SIG_DFL, signal.SIG_IGN]
    # a script that has ended leaves the notebook its own
    read_end(UserError("no data"))
    assert signal.getsignal(signal.SIGINT) == before


def test_scripts_run_in_a_notebook_any_number_of_times(train, monkeypatch):
    for _ in range(2):
        # without reconfigure(), as in Jupyter
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        run(lambda: train("--epochs", "1"), advice="")
        # the lock of the first run does not stop the second in the same process
        assert config.MODEL_PATH in sys.stdout.getvalue()


def test_any_file_name_can_be_printed_and_each_line_is_in_the_log_at_once(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    run(lambda: print("pâté \udcff.jpg"), advice="")
    assert stdout.buffer.getvalue().strip() == rb"p\xe2t\xe9 \udcff.jpg"
