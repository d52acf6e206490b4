"""The three scripts, run one after the other as a user runs them."""

import os
import re

import pytest
import torch
from conftest import PROJECT, draw_food11, draw_image, run_script
from torchvision.models import densenet121

from pyimagesearch import config
from pyimagesearch.food_classifier import FoodClassifier

TRAIN_FLAGS = (
    "--no-pretrained --image-size 32 --epochs 2 --local-batch-size 9 --num-workers 2".split()
)


@pytest.fixture(scope="module")
def workDir(tmp_path_factory):
    """A directory in which all three scripts ran, and what each of them printed."""
    folder = tmp_path_factory.mktemp("work")
    draw_food11(folder / "Food-11")
    runs = [
        run_script("prepare_dataset.py", cwd=folder),
        run_script("train_distributed.py", *TRAIN_FLAGS, cwd=folder),
        run_script("distributed_inference.py", "--image-size", "32", cwd=folder),
    ]
    for run in runs:
        assert run.returncode == 0, run.stderr
    return folder, runs


def without_progress(text):
    """Return what is left of stderr after its progress bars."""
    return re.sub(r"[^\r\n]*\d+%\|[^\r\n]*|[\r\n ]", "", text)


def test_no_script_prints_a_warning(workDir):
    (_, runs) = workDir
    assert [without_progress(run.stderr) for run in runs] == ["", "", ""]


def test_prepare_prints_its_lines(workDir):
    (_, (prepare, _, _)) = workDir
    expected = "[INFO] copying images...\n"
    for split, count in (("training", 33), ("validation", 22), ("evaluation", 22)):
        expected += f"[INFO] total images found: {count}...\n"
        path = os.path.join("dataset", split)
        expected += f"[INFO] total images copied to {path}: {count}...\n"
    assert prepare.stdout == expected


def test_train_prints_its_lines_in_order(workDir):
    (folder, (_, train, _)) = workDir
    epoch = (
        r"\[INFO\] EPOCH: 1/2\n"
        r"Train loss: \d\.\d{6}, Train accuracy: [01]\.\d{4}\n"
        r"Val loss: \d\.\d{6}, Val accuracy: [01]\.\d{4}\n"
    )
    report = (folder / "output" / "classification_report.txt").read_text()
    assert re.fullmatch(
        r"\[INFO\] number of GPUs found: \d+\.\.\.\n"
        r"\[INFO\] using a batch size of \d+\.\.\.\n"
        r"\[INFO\] training the network\.\.\.\n"
        + epoch
        + epoch.replace("1/2", "2/2")
        + r"\[INFO\] total time taken to train the model: \d+\.\d\ds\n"
        r"\[INFO\] evaluating network\.\.\.\n" + re.escape(report) + "\n",
        train.stdout,
    )
    assert "Noodles" in report
    assert re.search(r"accuracy +[01]\.\d\d +22\n", report)


def test_nothing_but_the_listed_files_is_written(workDir):
    (folder, _) = workDir
    assert sorted(os.listdir(folder)) == ["Food-11", "dataset", "output"]
    assert sorted(os.listdir(folder / "output")) == [
        "checkpoint.pth",
        "classification_report.txt",
        "confusion_matrix.png",
        "food_classifier.pth",
        "model_training.png",
        "results.png",
    ]


def test_inference_classifies_files(workDir):
    (folder, _) = workDir
    draw_image(folder / "output" / "lunch.png", 3)
    path = os.path.join("output", "lunch.png")
    run = run_script("distributed_inference.py", path, "--image-size", "32", cwd=folder)
    assert run.returncode == 0
    assert re.search(rf"{re.escape(path)}: (\w+ [01]\.\d\d(, |\n)){{3}}", run.stdout)


def test_every_script_has_help():
    for name in ("prepare_dataset.py", "train_distributed.py", "distributed_inference.py"):
        run = run_script(name, "--help")
        assert (run.returncode, run.stderr) == (0, "")
        assert "--seed" in run.stdout


def test_a_script_after_the_tutorial_runs_and_weights_move_both_ways(workDir):
    (folder, _) = workDir
    # ours load into the tutorial's model
    model = FoodClassifier(densenet121(weights=None), 11)
    state = torch.load(folder / config.MODEL_PATH, map_location="cpu", weights_only=True)
    model.load_state_dict(state)
    # the tutorial's load into ours
    driver = PROJECT / "tests" / "tutorial_driver.py"
    run = run_script(driver, cwd=folder, env={"PYTHONPATH": str(PROJECT)})
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("33 22 ['Bread', 'Dairy_product', ")
    run = run_script("distributed_inference.py", "--image-size", "32", cwd=folder)
    assert run.returncode == 0, run.stderr
