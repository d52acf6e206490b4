"""Several processes that train one model, forked as torchrun starts them, give what one gives."""

import os
import platform
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import (
    CLASSES,
    FLAGS,
    Process,
    TinyNet,
    assert_same_run,
    draw_class_folders,
    draw_image,
    load,
    read_tree,
    save_weights,
    start_group,
    torchrun_envs,
)
from torch import distributed

from pyimagesearch import config, create_dataloaders, food_classifier
from pyimagesearch.support import devices
from train_distributed import evaluate

FLAGS = [*FLAGS, "0", "--epochs", "1"]
# frozen batch normalization: 24 images in batches of 6, on one device as on two
FROZEN = [*FLAGS, "--pretrained", "--local-batch-size", "6"]


def end_all(processes, status=0):
    """Wait for processes; return their CompletedProcesses, all of which have this status."""
    runs = [process.end() for process in processes]
    assert [run.returncode for run in runs] == [status] * len(runs), [run.stderr for run in runs]
    return runs


def start_machines(*flags, settings=(None, None), before=None):
    """Train on two machines, each of which is a folder here: first and second. settings: of each;
    before: of the second; see Process."""
    (first, second) = torchrun_envs(2, machines=2)
    name = "train_distributed.py"
    return [
        Process(name, *flags, cwd="first", env=first, settings=settings[0]),
        Process(name, *flags, cwd="second", env=second, settings=settings[1], before=before),
    ]


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


def assert_evaluated_alike(one, other):
    """Compare two answers of evaluate() but for rounding."""
    (loss, accuracy, preds, probs) = one
    assert other == (pytest.approx(loss, rel=1e-5), accuracy, preds, pytest.approx(probs, rel=1e-4))


# also where one process has no image to evaluate
@pytest.mark.parametrize(("worldSize", "numImages"), [(2, 9), (3, 8), (4, 3)])
def test_processes_give_the_same_answer_as_one(worldSize, numImages):
    one = train_a_little(1, "freeze", numImages)
    many = train_a_little(worldSize, "freeze", numImages)
    assert many["train"] == [pytest.approx(pair, rel=1e-5) for pair in one["train"]]
    for key, tensor in one["model"].items():
        assert torch.allclose(many["model"][key], tensor, rtol=1e-4, atol=1e-6), key
    for ofOne, ofMany in zip(one["val"], many["val"], strict=True):
        assert_evaluated_alike(ofOne, ofMany)
        # each image once
        assert len(ofMany[2]) == len(ofMany[3]) == numImages


def test_trained_batch_norm_is_evaluated_with_the_statistics_that_are_saved(monkeypatch):
    many = train_a_little(2, "train", 9)
    monkeypatch.setattr(devices, "compute_dtype", lambda *_: torch.float32)
    (config.IMAGE_SIZE, config.CLASSES) = (32, CLASSES)
    config.DEVICE = torch.device("cpu")
    model = food_classifier.FoodClassifier(TinyNet(), 3)
    model.load_state_dict(many["model"])
    transform = create_dataloaders.eval_transform(32)
    (_, loader) = create_dataloaders.get_dataloader(config.VAL, transform, bs=6, shuffle=False)
    alone = evaluate(model, loader, torch.nn.CrossEntropyLoss())
    assert_evaluated_alike(alone, many["val"][-1])


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


def train_alone(*flags):
    """Train with FROZEN and other flags, in one process and in a folder of its own, on 24 images
    that are then in dataset/; return the checkpoint."""
    draw_class_folders(counts=(8, 3, 3))
    shutil.copytree("dataset", "alone/dataset")
    end_all([Process("train_distributed.py", *FROZEN, *flags, cwd="alone")])
    return load(Path("alone", config.CHECKPOINT_PATH))


def assert_same_training(one, other):
    """Compare two checkpoints but for rounding in half precision."""
    assert other["epoch"] == one["epoch"]
    for key, tensor in one["model"].items():
        torch.testing.assert_close(other["model"][key], tensor, rtol=1e-3, atol=1e-4)
    assert other["H"]["val_acc"] == one["H"]["val_acc"]
    for name in ("train_loss", "val_loss"):
        assert other["H"][name] == pytest.approx(one["H"][name], rel=1e-3)


@pytest.mark.parametrize("worldSize", [1, 2])
def test_processes_that_kubeflow_starts_join_as_those_of_torchrun(worldSize):
    draw_class_folders()
    # one in each pod
    own = ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    processes = []
    for env in torchrun_envs(worldSize, machines=worldSize):
        env = {name: value for name, value in env.items() if name not in own}
        processes.append(Process("train_distributed.py", *FLAGS, env=env))
    runs = end_all(processes)
    batch = 5 * worldSize
    assert f"using a batch size of {batch}..." in runs[0].stdout
    # rank 0 alone prints and writes
    assert [run.stdout for run in runs[1:]] == [""] * (worldSize - 1)
    assert len(list(Path("output").rglob("food_classifier.pth"))) == 1


def test_a_run_moves_from_one_device_to_two_and_back():
    alone = train_alone("--epochs", "4")
    for worldSize, flags in ((1, FROZEN), (2, ["--epochs", "2"]), (1, ["--epochs", "4"])):
        end_all(start_group(worldSize, "train_distributed.py", "--resume", *flags))
    assert_same_training(alone, load(config.CHECKPOINT_PATH))


def test_imagenet_weights_are_loaded_in_rank_0_and_sent_to_the_others():
    def load_in_rank_0(weights):
        assert (weights is not None) == (os.environ.get("RANK", "0") == "0")
        model = TinyNet()
        if weights:
            torch.nn.init.constant_(model.conv.weight, 0.05)
            torch.nn.init.constant_(model.norm.running_mean, 0.1)
        return model

    def patch():
        food_classifier.densenet121 = load_in_rank_0

    draw_class_folders(counts=(8, 3, 3))
    flags = [*FROZEN, "--lr", "0.002"]
    end_all([Process("train_distributed.py", *flags, before=patch)])
    alone = load(config.CHECKPOINT_PATH)
    flags = [*FROZEN, "--local-batch-size", "3"]
    end_all(start_group(2, "train_distributed.py", *flags, before=patch))
    two = load(config.CHECKPOINT_PATH)
    assert_same_training(alone, two)
    norms = [state["model"]["baseModel.norm.running_mean"] for state in (alone, two)]
    assert all(torch.equal(norm, torch.full((8,), 0.1)) for norm in norms)


# what config.py of the second machine may say, which counts nowhere
OTHERS = {
    "LR": 0.5,
    "SEED": 7,
    "EPOCHS": 5,
    "IMAGE_SIZE": 32,
    "LOCAL_BATCH_SIZE": 4,
    "PRETRAINED": False,
    "FREEZE_BATCH_NORM": False,
    "MEAN": [0.1, 0.2, 0.3],
    "STD": [0.5, 0.5, 0.5],
    "CLASSES": ["Egg", "Pizza"],
}
# and what would be wrong alone
WRONG = {"MEAN": [124, 116, 104], "EPOCHS": 0, "CLASSES": ["Soup"]}


@pytest.mark.parametrize("settings", [OTHERS, WRONG])
def test_a_second_machine_trains_with_the_settings_of_the_first(settings):
    alone = train_alone("--lr", "0.002")
    for folder in ("first", "second"):
        shutil.copytree("dataset", f"{folder}/dataset")
    # only the first is given the flags of the run
    (first, second) = torchrun_envs(2, machines=2)
    flags = [*FROZEN, "--local-batch-size", "3", "--lr", "0.001"]
    group = [
        Process("train_distributed.py", *flags, cwd="first", env=first),
        Process("train_distributed.py", cwd="second", env=second, settings=settings),
    ]
    assert [run.stderr for run in end_all(group)] == ["", ""]
    assert_same_training(alone, load("first/output/checkpoint.pth"))
    # it writes nothing
    assert not os.path.exists("second/output")


def test_a_second_machine_resumes_the_run_of_the_first():
    for folder in ("whole", "first", "second"):
        draw_class_folders(f"{folder}/dataset", counts=(7, 2, 2))
    flags = [*FLAGS, "--epochs", "3"]
    end_all(start_group(2, "train_distributed.py", *flags, machines=2, cwd="whole"))
    end_all(start_machines(*FLAGS))
    # a run of its own, which is not the one to resume
    end_all([Process("train_distributed.py", *FLAGS, "--seed", "7", cwd="second")])
    before = read_tree("second/output")
    flags = ["--resume", "--epochs", "3"]
    (run, _) = end_all(start_machines(*flags))
    assert "[INFO] resuming after epoch 1 of 3...\n" in run.stdout
    assert_same_run("first/output", "whole/output")
    assert read_tree("second/output") == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"LR": 0.0}, "LR must be float and at least"),
        ({"MEAN": [124, 116, 104]}, "MEAN must be three numbers from 0 to 1"),
        ({"CLASSES": ["Soup"]}, "CLASSES must be two or more"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--evaluate"]])
def test_a_wrong_setting_ends_all_and_is_said_once(settings, words, flags):
    draw_class_folders()
    save_weights(CLASSES)
    (first, second) = end_all(
        start_group(2, "train_distributed.py", *flags, settings=settings), status=1
    )
    assert re.fullmatch(rf"\[ERROR\] {words}.*\n", first.stderr)
    assert second.stderr == ""


def test_a_setting_that_is_wrong_in_rank_0_alone_ends_all():
    for folder in ("first", "second"):
        draw_class_folders(f"{folder}/dataset")
    (first, second) = end_all(start_machines(settings=({"LR": -1.0}, None)), status=1)
    assert re.fullmatch(r"\[ERROR\] LR must be .*\n", first.stderr)
    assert second.stderr == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: os.remove(root / "training/Soup/4.jpg"), "dataset/training 15 14"),
        (lambda root: os.remove(root / "validation/Egg/0.jpg"), "dataset/validation 9 8"),
        (lambda root: draw_image(root / "evaluation/Egg/0.jpg", 7, 9), "dataset/evaluation 9"),
        (lambda root: os.rename(root / "training/Egg/0.jpg", root / "training/Egg/5.jpg"), "15"),
        # Bread now has what Egg had, and the other way round
        (lambda root: swap(root / "training/Bread", root / "training/Egg"), "dataset/training"),
    ],
)
def test_machines_whose_images_differ_end_together_and_one_line_says_in_what(change, words):
    for folder in ("first", "second"):
        draw_class_folders(f"{folder}/dataset")
    change(Path("second/dataset"))

    def rename_host():
        platform.node = lambda: "other-host"

    (first, second) = end_all(start_machines(*FLAGS, before=rename_host), status=1)
    assert re.fullmatch(r"\[ERROR\] .+\n", first.stderr)
    for word in [*words.split(), platform.node(), "other-host"]:
        assert re.search(rf"\b{re.escape(word)}\b", first.stderr)
    assert second.stderr == ""
    assert not os.path.exists("first/output/checkpoint.pth")


def swap(one, other):
    """Give each of two files or folders the name of the other."""
    os.rename(one, "swapped")
    os.rename(other, one)
    os.rename("swapped", other)


def test_other_classes_on_the_second_machine_alone_end_all_and_are_said_once():
    draw_class_folders("first/dataset")
    draw_class_folders("second/dataset", ["Bread", "Egg", "Pizza"])
    same = {"LR": 0.001, "IMAGE_SIZE": 64, "EPOCHS": 1, "PRETRAINED": False, "NUM_WORKERS": 0}
    runs = end_all(start_machines(settings=(same, same)), status=1)
    text = "".join(run.stderr for run in runs)
    assert len(re.findall(r"^\[ERROR\] dataset/training .*\n", text, re.M)) == 1


def test_a_machine_without_training_images_ends_all():
    for folder in ("first", "second"):
        draw_class_folders(f"{folder}/dataset")
    shutil.rmtree("second/dataset/training")
    (_, second) = end_all(start_machines(*FLAGS), status=1)
    # torchvision's own
    assert re.search(r"^FileNotFoundError: .*dataset/training'\n$", second.stderr, re.M)
    assert not os.path.exists("first/output/checkpoint.pth")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lr", "a"], "argument --lr: invalid float value: 'a'"),
        (["--evaluate", "--lr", "1"], "--evaluate trains nothing; leave out --lr"),
    ],
)
def test_a_wrong_flag_ends_all_in_the_words_of_argparse(flags, words):
    for run in end_all(start_group(2, "train_distributed.py", *flags), status=2):
        assert run.stderr.endswith(f"\ntrain_distributed.py: error: {words}\n")


@pytest.mark.parametrize("isThere", [True, False])
def test_two_machines_evaluate_the_weights_of_the_first(isThere):
    for folder in ("first", "second"):
        draw_class_folders(f"{folder}/dataset")
    config.MODEL_PATH = "first/output/food_classifier.pth"
    save_weights(CLASSES, [0.0, 1.0, 0.0])
    if isThere:
        config.MODEL_PATH = "second/output/food_classifier.pth"
        save_weights(CLASSES, [1.0, 0.0, 0.0])
    (first, second) = end_all(start_machines("--evaluate"))
    assert (first.stderr, second.stderr, second.stdout) == ("", "", "")
    (folder,) = Path("first/output").glob("evaluation-*")
    rows = (folder / "predictions.csv").read_text().splitlines()[1:]
    assert [row.split(",")[2] for row in rows] == ["Egg"] * 9
    assert not list(Path("second").glob("output/evaluation-*"))


def test_without_weights_in_rank_0_an_evaluation_ends_all_and_is_said_once():
    for folder in ("first", "second"):
        draw_class_folders(f"{folder}/dataset")
    config.MODEL_PATH = "second/output/food_classifier.pth"
    save_weights(CLASSES)
    (first, second) = end_all(start_machines("--evaluate"), status=1)
    assert re.fullmatch(r"\[ERROR\] no weights at .+\n", first.stderr)
    assert second.stderr == ""


def test_a_second_training_in_output_ends_all_its_processes_and_is_said_once():
    draw_class_folders()
    running = Process("train_distributed.py", *FLAGS, "--epochs", "10000")
    running.wait_for("EPOCH: 1/")
    (first, second) = end_all(start_group(2, "train_distributed.py", *FLAGS), status=1)
    assert re.fullmatch(r"\[ERROR\] another training is running in .+\n", first.stderr)
    assert second.stderr == ""
    running.kill()
    running.end()


def test_a_gpu_of_ones_own_choice_is_refused_with_several_processes():
    def pretend_to_have_gpus():
        init = distributed.init_process_group
        distributed.init_process_group = lambda backend: init("gloo")
        torch.cuda.set_device = lambda index: None

    settings = {"DEVICE": "cuda:1"}
    group = start_group(
        2, "train_distributed.py", *FLAGS, settings=settings, before=pretend_to_have_gpus
    )
    (first, second) = end_all(group, status=1)
    assert re.fullmatch(r"\[ERROR\] DEVICE is cuda:1, .*CUDA_VISIBLE_DEVICES.*\n", first.stderr)
    assert second.stderr == ""
    assert not os.path.exists("output")


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
