"""Weights and reports of one's own: --evaluate, --weights, what the files of a run say of it."""

import io
import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import train_distributed
from pyimagesearch import checkpoint, cli, config, devices, food_classifier, images
from pyimagesearch.cli import UserError
from pyimagesearch.food_classifier import FoodClassifier, load_classifier

import numpy as np
import pytest
import torch
from conftest import (
    CLASSES,
    TinyNet,
    draw_class_folders,
    draw_image,
    install_project,
    read_forked,
    run_forked,
    run_script,
    start_group,
)
from torchvision import transforms

FLAGS = "--image-size 64 --epochs 1 --num-workers 0 --local-batch-size 4 --no-pretrained".split()
REPORTS = ("classification_report.txt", "predictions.csv")


@pytest.fixture
def tinyRun(monkeypatch):
    """Let train(*flags) run train_distributed.py here, with a small network."""
    draw_class_folders(Path("dataset"))
    config.CLASSES = list(CLASSES)
    monkeypatch.setattr(food_classifier, "densenet121", lambda weights: TinyNet())
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.float32)

    def train(*flags):
        monkeypatch.setattr("sys.argv", ["train_distributed.py", *flags])
        train_distributed.main()

    return train


def read_files(folder="output"):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def find_evaluation():
    """Return the one folder that --evaluate wrote."""
    (folder,) = [path for path in Path("output").iterdir() if path.is_dir()]
    return folder


def test_evaluate_right_after_training_gives_the_very_report(tinyRun, capsys, monkeypatch):
    tinyRun(*FLAGS)
    before = read_files()
    printed = capsys.readouterr().out
    # config.py by now says other things, which the weights know better
    (config.IMAGE_SIZE, config.MEAN, config.STD) = (224, [0.1] * 3, [0.9] * 3)
    monkeypatch.setattr(train_distributed, "train_one_epoch", None)
    tinyRun("--evaluate")
    out = capsys.readouterr().out
    report = before["classification_report.txt"].decode()
    assert report in printed
    assert report in out
    # an earlier report is as it was
    assert read_files() == before
    found = read_files(find_evaluation())
    for name in REPORTS:
        assert found[name] == before[name]
    assert set(found) <= set(before)
    # in another batch size as well
    shutil.rmtree(find_evaluation())
    tinyRun("--evaluate", "--local-batch-size", "7")
    assert read_files(find_evaluation())["predictions.csv"] == before["predictions.csv"]


@pytest.mark.parametrize("numGPU", [0, 1, 2])
def test_evaluate_uses_all_devices(tinyRun, monkeypatch, numGPU):
    tinyRun(*FLAGS)
    expected = read_files()["predictions.csv"]
    monkeypatch.setattr(devices, "count_gpus", lambda: numGPU)
    seen = []
    evaluate = train_distributed.evaluate
    monkeypatch.setattr(
        train_distributed, "evaluate", lambda *args: seen.append(args) or evaluate(*args)
    )
    tinyRun("--evaluate", "--local-batch-size", "4")
    ((model, loader, _),) = seen
    assert isinstance(model, torch.nn.DataParallel) == (numGPU == 2)
    assert loader.batch_size == 4 * max(numGPU, 1)
    assert read_files(find_evaluation())["predictions.csv"] == expected


@pytest.mark.parametrize("prefix", ["", "module."])
def test_evaluate_takes_weights_of_the_tutorial(tinyRun, prefix):
    tinyRun(*FLAGS)
    expected = read_files()
    state = checkpoint.load_state(config.MODEL_PATH)
    # as its script saves them, on one GPU or from the wrapper: no metadata
    torch.save({prefix + key: tensor for key, tensor in state.items()}, "tutorial.pth")
    os.remove(config.MODEL_PATH)
    (config.CLASSES, config.IMAGE_SIZE) = (["Soup", "Egg", "Bread"], 64)
    tinyRun("--evaluate", "--weights", "tutorial.pth")
    found = read_files(find_evaluation())
    assert all(found[name] == expected[name] for name in REPORTS)


def test_weights_that_a_wrapper_saved_keep_their_metadata(tinyRun):
    config.IMAGE_SIZE = 80
    model = torch.nn.DataParallel(FoodClassifier(TinyNet(), 3))
    checkpoint.save_weights(model, CLASSES)
    config.IMAGE_SIZE = 224
    (_, classes, transform) = load_classifier(config.MODEL_PATH)
    assert classes == list(CLASSES)


def test_evaluate_without_weights_ends_in_one_line(tinyRun):
    with pytest.raises(UserError, match="^output.food_classifier.pth: No such file") as caught:
        tinyRun("--evaluate")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="^elsewhere.pth: No such file"):
        tinyRun("--evaluate", "--weights", "elsewhere.pth")
    assert not list(Path(".").glob("output/*/*"))


def test_evaluate_refuses_a_test_set_of_other_classes(tinyRun):
    tinyRun(*FLAGS)
    shutil.rmtree("dataset/evaluation/Soup")
    with pytest.raises(UserError, match="3 classes: Bread, Egg, Soup; .* has 2 classes: Bread, E"):
        tinyRun("--evaluate")


def test_weights_without_evaluate_is_a_wrong_flag(tinyRun):
    with pytest.raises(UserError, match="--weights .*--evaluate") as caught:
        tinyRun(*FLAGS, "--weights", "a.pth")
    assert caught.value.status == 2
    assert not os.path.exists(config.CHECKPOINT_PATH)


def test_two_processes_write_the_same_table_as_one():
    # 15 images over two processes in batches of 4: nothing divides evenly
    draw_class_folders(Path("dataset"), counts=(4, 2, 5))
    run = run_forked("train_distributed.py", *FLAGS)
    assert run.returncode == 0, run.stderr
    expected = read_files()
    processes = start_group(2, "train_distributed.py", "--evaluate", "--local-batch-size", "2")
    runs = [read_forked(process) for process in processes]
    for other in runs:
        assert (other.returncode, other.stderr) == (0, "")
    assert expected["classification_report.txt"].decode() in runs[0].stdout
    assert runs[1].stdout == ""
    found = read_files(find_evaluation())
    assert all(found[name] == expected[name] for name in REPORTS)
    rows = found["predictions.csv"].decode().splitlines()[1:]
    assert len({row.split(",")[0] for row in rows}) == len(rows) == 15


def test_a_run_under_two_processes_writes_tables_and_pictures_once():
    draw_class_folders(Path("dataset"), counts=(4, 2, 5))
    runs = [read_forked(p) for p in start_group(2, "train_distributed.py", *FLAGS)]
    assert [run.returncode for run in runs] == [0, 0]
    rows = read_files()["predictions.csv"].decode().splitlines()[1:]
    assert len({row.split(",")[0] for row in rows}) == len(rows) == 15
    assert {"mistakes.png", "settings.json"} <= set(read_files())


# ---- what a run says of itself


def test_settings_can_be_read_by_a_person_and_move_aside_with_their_run(tinyRun):
    tinyRun(*FLAGS, "--seed", "7", "--lr", "0.01")
    text = Path(config.SETTINGS_PATH).read_text()
    settings = json.loads(text)
    expected = {
        "SEED": 7,
        "LR": 0.01,
        "IMAGE_SIZE": 64,
        "EPOCHS": 1,
        "LOCAL_BATCH_SIZE": 4,
        "PRETRAINED": False,
        "MEAN": config.MEAN,
        "STD": config.STD,
        "CLASSES": ["Bread", "Egg", "Soup"],
    }
    assert {name: settings[name] for name in expected} == expected
    # a line for each
    assert text.count("\n") > len(settings)
    (predictions, old) = (read_files()["predictions.csv"], read_files())
    tinyRun(*FLAGS, "--seed", "8")
    assert json.loads(Path(config.SETTINGS_PATH).read_text())["SEED"] == 8
    (folder,) = Path("output").glob("run-*")
    moved = read_files(folder)
    assert json.loads(moved["settings.json"])["SEED"] == 7
    assert moved["predictions.csv"] == predictions
    assert moved == {name: data for name, data in old.items() if name != ".lock"}


# ---- 1: numbers of numpy and other kinds


@pytest.mark.parametrize("kind", [np.array, tuple, lambda x: [np.float32(n) for n in x]])
def test_any_kind_of_number_in_config_is_stored_plain(tinyRun, kind):
    config.MEAN = kind([0.5, 0.25, 0.75])
    config.STD = kind([0.5, 0.25, 0.125])
    config.CLASSES = tuple(np.array(CLASSES))
    (config.SEED, config.LR, config.EPOCHS) = (np.int64(7), np.float64(0.001), np.int32(2))
    (config.IMAGE_SIZE, config.LOCAL_BATCH_SIZE) = (np.int64(64), np.uint8(4))
    (config.PRETRAINED, config.NUM_WORKERS) = (np.bool_(False), np.int64(0))
    tinyRun()
    # read back without a word about what was pickled
    assert checkpoint.load_state(config.CHECKPOINT_PATH)["record"]["SEED"] == 7
    for path in (config.MODEL_PATH, config.CHECKPOINT_PATH):
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
            assert b"numpy" not in archive.read(name)
    facts = checkpoint.load_state(config.MODEL_PATH)._metadata[""]
    assert facts["mean"] == [0.5, 0.25, 0.75]
    assert {type(number) for number in facts["mean"] + facts["std"]} == {float}
    assert type(facts["imageSize"]) is int
    assert {type(name) for name in facts["classes"]} == {str}
    assert json.loads(Path(config.SETTINGS_PATH).read_text())["LR"] == 0.001
    tinyRun("--evaluate")
    tinyRun("--resume")


# ---- 4: notebooks (3, their MPLBACKEND, is that of the run of test_train_distributed.py)


class PlainStdout(io.StringIO):
    """A stdout as of Jupyter, Spyder and IDLE."""

    reconfigure = property(lambda self: getattr(None, "reconfigure"))  # noqa: B009


def test_a_stdout_without_reconfigure_is_no_trouble_any_number_of_times(monkeypatch):
    assert not hasattr(PlainStdout(), "reconfigure")
    for _ in range(2):
        stdout = PlainStdout()
        monkeypatch.setattr(sys, "stdout", stdout)
        cli.run(lambda: print("done"))
        assert stdout.getvalue() == "done\n"
        # an error ends the script, not the notebook
        with pytest.raises(SystemExit, match="1"):
            cli.run(lambda: load_classifier("a.pth"))


def test_a_script_runs_twice_in_a_notebook(tinyRun, monkeypatch):
    for _ in range(2):
        monkeypatch.setattr(sys, "stdout", PlainStdout())
        cli.run(lambda: tinyRun(*FLAGS))
        # the lock of the first run does not stop the second in the same process
        assert "classification_report.txt" in sys.stdout.getvalue()


# ---- 13: a whole model, and other files that are no weights


@pytest.mark.parametrize("flag", ["--evaluate", "--resume"])
def test_a_whole_model_is_not_called_corrupt(tinyRun, flag):
    os.mkdir("output")
    path = config.MODEL_PATH if flag == "--evaluate" else config.CHECKPOINT_PATH
    torch.save(TinyNet(), path)
    data = Path(path).read_bytes()
    with pytest.raises(UserError) as caught:
        tinyRun(flag)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "torch.save(model.state_dict(), " in line
    assert not re.search("corrupt|remove|delete", line)
    assert Path(path).read_bytes() == data


def test_a_whole_classifier_can_be_saved():
    torch.save(FoodClassifier(TinyNet(), 3), "whole.pth")


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\3\4half", b"\x80\x02}q\0."])
def test_no_file_that_cannot_be_read_is_to_be_removed(tinyRun, content):
    os.mkdir("output")
    Path(config.MODEL_PATH).write_bytes(content)
    with pytest.raises(UserError) as caught:
        tinyRun("--evaluate")
    assert not re.search("remove|delete", str(caught.value))


# ---- config.py that Python cannot read


@pytest.fixture(scope="module")
def brokenProject(tmp_path_factory):
    """A copy of the project of one's own, whose config.py may be spoiled."""
    folder = tmp_path_factory.mktemp("broken") / "project"
    shutil.copytree(install_project(), folder)
    return folder


def run_with_config(project, line, **env):
    """Run a script with a line added to config.py, before it imports torch, which takes seconds;
    return the CompletedProcess and the number of the line."""
    path = project / "pyimagesearch" / "config.py"
    before = path.read_text()
    (head, found, tail) = before.partition("import joblib\n")
    path.write_text(f"{head}{line}\n{found}{tail}")
    try:
        env = {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1", **env}
        run = run_script(project / "prepare_dataset.py", "--help", env=env)
    finally:
        path.write_text(before)
    return run, head.count("\n") + 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('DATA_PATH = "C:\\Users\\me"', "unicode"),
        ("CLASSES = [", "never closed"),
        ("CLASSES = [Bread, Egg]", "Bread"),
        ("LR = 0,00x1", "decimal"),
        ("  LR = 0.1", "indent"),
        ("MEAN = numpy.array([1])", "numpy"),
        ("LR = 1 / 0", "division"),
        ("import no_such_package", "no_such_package"),
    ],
)
def test_config_that_python_cannot_read_is_one_line_with_its_place(brokenProject, line, says):
    (run, number) = run_with_config(brokenProject, line)
    assert run.returncode == 1
    assert re.fullmatch(r"\[ERROR\] .+\n", run.stderr), run.stderr
    assert says in run.stderr
    if says != "no_such_package":
        assert re.search(rf"config\.py\W+line {number}\b", run.stderr), run.stderr


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")]
)
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(
    brokenProject, given, expected
):
    (run, _) = run_with_config(brokenProject, 'sys.exit(os.environ["OMP_WAIT_POLICY"])', **given)
    assert run.stderr == f"{expected}\n"


def test_a_device_is_quoted_as_it_was_typed(monkeypatch):
    config.DEVICE = "cuda:99"
    with pytest.raises(UserError, match="not 'cuda:99'"):
        devices.join_processes()


# ---- from one's own code


def test_load_classifier_gives_model_classes_and_transform_of_the_weights(tinyRun, monkeypatch):
    monkeypatch.setattr(config, "IMAGE_SIZE", 48)
    (config.MEAN, config.STD) = ([0.5] * 3, [0.25] * 3)
    model = FoodClassifier(TinyNet(), 3).eval()
    # as an ImageFolder sorts them; config.py has another order, and by now other classes
    checkpoint.save_weights(model, ["Pizza", "bread", "egg"])
    (config.IMAGE_SIZE, config.MEAN, config.STD) = (224, [0.1] * 3, [0.9] * 3)
    config.CLASSES = ["bread", "egg", "Pizza"]
    shutil.move(config.MODEL_PATH, "mine.pth")
    (loaded, classes, transform) = load_classifier("mine.pth")
    assert list(classes) == ["Pizza", "bread", "egg"]
    draw_image(Path("lunch.jpg"), 3)
    photo = images.load_image("lunch.jpg")
    expected = transforms.Compose(
        [
            transforms.Resize((48, 48)),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )(photo)
    x = transform(photo)
    assert torch.equal(x, expected)
    assert not loaded.training
    device = next(loaded.parameters()).device
    assert device.type == config.DEVICE.type
    with torch.no_grad():
        logits = loaded(x[None].to(device)).cpu()
        assert torch.allclose(logits, model.cpu()(expected[None]), atol=1e-5)
