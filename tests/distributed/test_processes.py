"""Several processes that train one model, forked as torchrun starts them, give what one gives."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

from pyimagesearch import config, create_dataloaders, devices
from pyimagesearch.food_classifier import FoodClassifier
from train_distributed import evaluate

import pytest
import torch
from helpers import (
    CLASSES,
    FLAGS,
    Process,
    TinyNet,
    draw_class_folders,
    draw_image,
    load,
    read_tree,
    save_weights,
    start_group,
    torchrun_envs,
)

FLAGS = [*FLAGS, "0", "--epochs", "1"]


def end_all(processes, status=0):
    """Wait for processes; return their CompletedProcesses, all of which have this status."""
    runs = [process.end() for process in processes]
    assert [run.returncode for run in runs] == [status] * len(runs), [run.stderr for run in runs]
    return runs


def train_a_little(worldSize, batchNorm, numImages):
    """Train in so many processes, which start with different weights and statistics; return what
    train_a_little.py saves. batchNorm: freeze or train; numImages: to evaluate."""
    # 24 training images divide evenly
    draw_class_folders(counts=(8, 3, 1))
    paths = Path("dataset/validation").glob("*/*.jpg")
    # the first of each class before the others
    for path in sorted(paths, key=lambda path: (path.name, path))[numImages:]:
        path.unlink()
    path = f"output/{worldSize}.pth"
    group = start_group(worldSize, "tests/distributed/train_a_little.py", path, batchNorm)
    for run in end_all(group):
        assert run.stderr == ""
    return load(path)


# also where one process has no image to evaluate
@pytest.mark.parametrize(("worldSize", "numImages"), [(2, 9), (3, 8), (4, 3)])
def test_processes_give_the_same_answer_as_one(worldSize, numImages):
    (one, many) = (train_a_little(n, "freeze", numImages) for n in (1, worldSize))
    assert many["train"] == [pytest.approx(pair, rel=1e-5) for pair in one["train"]]
    for key, tensor in one["model"].items():
        assert torch.allclose(many["model"][key], tensor, rtol=1e-4, atol=1e-6), key
    for (*numbers, preds), (*expected, others) in zip(many["val"], one["val"], strict=True):
        assert numbers == pytest.approx(expected, rel=1e-5)
        # each image once, in order
        assert len(preds) == numImages
        assert preds == [(label, pytest.approx(p, rel=1e-4)) for label, p in others]


def test_trained_batch_norm_is_evaluated_with_the_statistics_that_are_saved(monkeypatch):
    many = train_a_little(2, "train", 9)
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.float32)
    (config.IMAGE_SIZE, config.CLASSES) = (32, CLASSES)
    config.DEVICE = torch.device("cpu")
    model = FoodClassifier(TinyNet(), 3)
    model.load_state_dict(many["model"])
    transform = create_dataloaders.test_transform()
    (_, loader) = create_dataloaders.get_dataloader(config.VAL, transform, 6, shuffle=False)
    (loss, accuracy, preds) = evaluate(model, loader, torch.nn.CrossEntropyLoss())
    assert many["val"][-1][:2] == (pytest.approx(loss, rel=1e-5), accuracy)
    assert many["val"][-1][2] == [(label, pytest.approx(p, rel=1e-4)) for label, p in preds]


def test_two_processes_write_the_same_tables_as_one_and_print_once():
    # 15 test images over two processes in batches of 2: nothing divides evenly
    draw_class_folders(counts=(4, 2, 5))
    end_all([Process("train_distributed.py", *FLAGS)])
    expected = read_tree()
    tables = ("classification_report.txt", "predictions.csv")
    flags = ["--evaluate", "--local-batch-size", "2"]
    (first, second) = end_all(start_group(2, "train_distributed.py", *flags))
    assert expected[tables[0]].decode() in first.stdout
    assert (first.stderr, second.stderr, second.stdout) == ("", "", "")
    (folder,) = Path("output").glob("evaluation-*")
    assert [read_tree(folder)[name] for name in tables] == [expected[name] for name in tables]
    rows = expected[tables[1]].decode().splitlines()[1:]
    assert len({row.split(",")[0] for row in rows}) == len(rows) == 15


def test_a_run_moves_from_one_device_to_two_and_back():
    draw_class_folders(counts=(8, 3, 3))
    shutil.copytree("dataset", "one/dataset")
    # frozen batch normalization: 24 images in batches of 6, on one device as on two
    flags = [*FLAGS, "--pretrained", "--local-batch-size", "6"]
    end_all([Process("train_distributed.py", *flags, "--epochs", "4", cwd="one")])
    for worldSize, others in ((1, flags), (2, ["--epochs", "2"]), (1, ["--epochs", "4"])):
        end_all(start_group(worldSize, "train_distributed.py", "--resume", *others))
    (one, moved) = (load(Path(folder, config.CHECKPOINT_PATH)) for folder in ("one", "."))
    assert moved["epoch"] == 4
    for key, tensor in one["model"].items():
        torch.testing.assert_close(moved["model"][key], tensor, rtol=1e-3, atol=1e-4)
    assert moved["H"]["val_acc"] == one["H"]["val_acc"]


@pytest.mark.parametrize(
    ("settings", "change", "words"),
    [
        ({"LR": 0.01}, None, "LR 0.001 0.01"),
        # wrong on the second alone
        ({"MEAN": [124, 116, 104]}, None, "MEAN"),
        ({"CLASSES": ["Bread", "Egg", "Pizza"]}, None, "CLASSES Pizza Soup"),
        ({}, lambda root: shutil.rmtree(root / "training"), "second/dataset/training"),
        ({}, lambda root: os.remove(root / "validation/Egg/0.jpg"), "validation 9 8"),
        ({}, lambda root: draw_image(root / "evaluation/Egg/0.jpg", 7, seed=9), "test"),
    ],
)
def test_machines_that_differ_end_together_and_one_line_says_in_what(settings, change, words):
    draw_class_folders("first/dataset")
    draw_class_folders("second/dataset", settings.get("CLASSES", CLASSES))
    if change:
        change(Path("second/dataset"))
    (first, second) = torchrun_envs(2, machines=2)
    same = {"LR": 0.001, "IMAGE_SIZE": 64, "EPOCHS": 1, "PRETRAINED": False}
    processes = [
        Process("train_distributed.py", cwd="first", env=first, settings=same),
        Process("train_distributed.py", cwd="second", env=second, settings=same | settings),
    ]
    (first, second) = end_all(processes, status=1)
    assert re.fullmatch(r"\[ERROR\] .+\n", first.stderr)
    for word in words.split():
        assert re.search(rf"\b{re.escape(word)}\b", first.stderr)
    assert second.stderr == ""
    assert not os.path.exists("first/output/checkpoint.pth")


@pytest.mark.parametrize("words", ["--lr: invalid float value: 'a'", "--weights needs --evaluate"])
def test_a_wrong_flag_ends_all_in_the_words_of_argparse(words):
    flag = re.split("[: ]", words)[0]
    for run in end_all(start_group(2, "train_distributed.py", flag, "a"), status=2):
        assert re.search(rf"^train_distributed.py: error: (argument )?{words}\n$", run.stderr, re.M)


def test_machines_with_other_weights_evaluate_nothing():
    group = []
    for rank, env in enumerate(torchrun_envs(2, machines=2)):
        draw_class_folders(f"{rank}/dataset")
        config.MODEL_PATH = f"{rank}/output/food_classifier.pth"
        save_weights(CLASSES, [rank, 0.0, 0.0])
        group.append(Process("train_distributed.py", "--evaluate", cwd=f"{rank}", env=env))
    text = end_all(group, status=1)[0].stderr
    assert re.fullmatch(r"\[ERROR\] output/food_classifier.pth is .+\n", text)


@pytest.mark.parametrize("numWorkers", ["0", "1"])
@pytest.mark.parametrize("number", [0, 1])
def test_an_unreadable_image_ends_all_and_is_said_once(number, numWorkers):
    draw_class_folders(counts=(4, 2, 2))
    # in the share of the first process or of the second
    path = Path(f"dataset/validation/Bread/{number}.jpg")
    path.write_text("no image")
    group = start_group(2, "train_distributed.py", *FLAGS, "--num-workers", numWorkers)
    runs = end_all(group, status=1)
    lines = [line for run in runs for line in run.stderr.splitlines() if "[ERROR]" in line]
    assert len(lines) == 1 and lines[0].startswith(f"[ERROR] {path}: "), lines
    assert lines == runs[number].stderr.splitlines()


def test_a_diverged_loss_ends_all_and_is_said_once():
    draw_class_folders()
    # the first step breaks the weights
    group = start_group(2, "train_distributed.py", *FLAGS, settings={"STD": [1e-39] * 3})
    (first, second) = end_all(group, status=1)
    assert re.fullmatch(r"\[ERROR\] .*diverged.*\n", first.stderr)
    assert second.stderr == ""
    assert not os.path.exists(config.CHECKPOINT_PATH)


@pytest.mark.parametrize(("lost", "numWorkers"), [(0, "0"), (1, "1")])
def test_a_process_whose_partner_is_lost_ends(lost, numWorkers):
    draw_class_folders()
    flags = [*FLAGS, "--epochs", "10000", "--num-workers", numWorkers]
    group = start_group(2, "train_distributed.py", *flags)
    group[0].wait_for("EPOCH: 1/")
    group[lost].kill()
    start = time.monotonic()
    assert group[1 - lost].end().returncode not in (0, None)
    assert time.monotonic() - start < 10
    assert group[lost].end().returncode == -signal.SIGKILL
