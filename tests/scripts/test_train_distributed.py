"""Step 2: what the training prints, computes, saves and resumes, and the evaluation of weights."""

import copy
import errno
import io
import json
import math
import os
import re
import shutil
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from helpers import (
    CLASSES,
    DEFAULTS,
    FLAGS,
    TinyNet,
    assert_same,
    call,
    draw_class_folders,
    draw_image,
    load,
    read_tree,
    without_time,
)
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision import transforms
from torchvision.models import densenet121

import train_distributed
from pyimagesearch import config
from pyimagesearch.create_dataloaders import eval_transform, get_dataloader
from pyimagesearch.food_classifier import FoodClassifier
from pyimagesearch.support import devices, figures, processes, reporting, script
from pyimagesearch.support.errors import UserError

PRODUCTS = "checkpoint.pth classification_report.txt confusion_matrix.png food_classifier.pth "
PRODUCTS += "history.csv mistakes.png model_training.png predictions.csv settings.json"
PRODUCTS = PRODUCTS.split()


def run_script(*flags):
    """Call the script as a command, which has all settings from config."""
    call(train_distributed.main, *flags)


@pytest.fixture
def edited(train):
    """Have config.py as a user edits it who gives no flags, for two epochs of TinyNet."""
    (config.IMAGE_SIZE, config.LOCAL_BATCH_SIZE, config.PRETRAINED) = (64, 5, False)
    (config.EPOCHS, config.LR) = (2, 0.001)


def fail(capsys, *flags):
    """Call the script, which must end in one line; return the line."""
    with pytest.raises(SystemExit) as caught:
        script.run(lambda: run_script(*flags), advice="")
    assert capsys.readouterr().err == ""
    line = str(caught.value)
    assert line.startswith("[ERROR] ") and line.count("\n") == 0
    return line


def interrupt_epoch(monkeypatch, number):
    """Have Ctrl-C end the training in its next epoch of this number, counted from 1."""
    train_one_epoch = train_distributed.train_one_epoch
    calls = []

    def train_or_stop(*args):
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return train_one_epoch(*args)

    monkeypatch.setattr(train_distributed, "train_one_epoch", train_or_stop)


def read_settings(folder="output"):
    return json.loads(Path(folder, "settings.json").read_text())


def count_epochs():
    """Return how many epochs the run in output/ has completed."""
    return load(config.CHECKPOINT_PATH)["epoch"]


@pytest.fixture
def loopCalls(monkeypatch):
    """Collect the arguments of the training loop in each epoch."""
    loop = Mock(wraps=train_distributed.train_one_epoch)
    monkeypatch.setattr(train_distributed, "train_one_epoch", loop)
    return loop.call_args_list


def test_the_lines_of_the_tutorial_are_printed_in_its_order(train, capsys):
    train()
    epoch = (
        r"\[INFO\] EPOCH: {}/2\n"
        r"Train loss: \d\.\d{{6}}, Train accuracy: [01]\.\d{{4}}\n"
        r"Val loss: \d\.\d{{6}}, Val accuracy: [01]\.\d{{4}}\n"
        r"Learning rate: 0\.001\n"
    )
    assert re.search(
        r"\[INFO\] number of GPUs found: \d+\.\.\.\n"
        r"\[INFO\] using a batch size of \d+\.\.\.\n"
        r"\[INFO\] training the network\.\.\.\n"
        + epoch.format(1)
        + epoch.format(2)
        + r"\[INFO\] total time taken to train the model: \d+\.\d\ds\n"
        r"\[INFO\] evaluating network\.\.\.\n"
        + re.escape(Path(config.REPORT_PATH).read_text())
        + r"\n(\[INFO\] .*\n)+$",
        capsys.readouterr().out,
    )
    assert sorted(read_tree()) == PRODUCTS
    history = load(config.CHECKPOINT_PATH)["H"]
    names = ["rate", "train_loss", "train_acc", "val_loss", "val_acc", "seconds"]
    assert list(history) == names
    assert {len(values) for values in history.values()} == {2}


def test_the_settings_of_a_run_are_in_a_file_from_its_start_with_a_line_for_each(
    train, monkeypatch
):
    interrupt_epoch(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        train("--seed", "7")
    assert list(read_tree()) == ["settings.json"]
    settings = read_settings()
    assert list(settings) == ["started", "number of devices", "flags", "config"]
    assert (
        abs(time.mktime(time.strptime(settings["started"], "%Y-%m-%d %H:%M:%S")) - time.time()) < 60
    )
    assert settings["number of devices"] == devices.count_devices()
    # what config.py said and what flags said, apart
    flags = {"IMAGE_SIZE": 64, "LOCAL_BATCH_SIZE": 5, "EPOCHS": 2, "LR": 0.001, "SEED": 7}
    assert settings["flags"] == flags | {"NUM_WORKERS": 0, "PRETRAINED": False}
    assert settings["config"].keys() == DEFAULTS.keys()
    for name in ("IMAGE_SIZE", "EPOCHS", "LR", "SEED", "MEAN", "TRAIN", "FREEZE_BATCH_NORM"):
        assert settings["config"][name] == DEFAULTS[name]
    assert settings["config"]["CLASSES"] == CLASSES
    assert Path(config.SETTINGS_PATH).read_text().count("\n") > len(DEFAULTS) + len(flags)


@pytest.mark.parametrize("numDevices", [1, 3])
def test_without_flags_none_is_said_to_override_a_setting(edited, numDevices, monkeypatch, capsys):
    monkeypatch.setattr(devices, "count_gpus", lambda: numDevices)
    # three times which, by three, is another number
    config.LR = 0.1
    run_script()
    run_script("--resume")
    run_script("--evaluate")
    out = capsys.readouterr().out
    assert "overridden" not in out
    assert "Learning rate: 0.3\n" in out or numDevices == 1


def test_augmentation_loss_and_optimizer_are_those_of_the_tutorial(train, loopCalls):
    train("--epochs", "1")
    (_, loader, lossFunc, opt, scaler) = loopCalls[0].args
    steps = [transforms.RandomResizedCrop(64), transforms.RandomHorizontalFlip()]
    steps += [transforms.RandomRotation(90), transforms.PILToTensor()]
    assert repr(loader.dataset.transform) == repr(transforms.Compose(steps))
    assert vars(lossFunc) == vars(nn.CrossEntropyLoss())
    assert type(opt) is torch.optim.Adam
    plain = torch.optim.Adam([torch.zeros(1)], lr=0.001, fused=True)
    found = opt.param_groups[0] | {"params": None}
    assert found == plain.param_groups[0] | {"params": None, "initial_lr": 0.001}
    assert scaler.is_enabled() == (devices.compute_dtype(config.DEVICE) == torch.float16)


def test_batch_and_learning_rate_grow_with_the_gpus(train, loopCalls, monkeypatch, capsys):
    for numGPU in (0, 1, 2):
        monkeypatch.setattr(devices, "count_gpus", lambda count=numGPU: count)
        train("--epochs", "1")
        out = capsys.readouterr().out
        assert f"[INFO] number of GPUs found: {numGPU}...\n" in out
        assert f"[INFO] using a batch size of {5 * max(numGPU, 1)}...\n" in out
        # the plain model's keys, DataParallel or not
        assert set(load(config.MODEL_PATH)) == set(FoodClassifier(TinyNet(), 3).state_dict())
        assert ("torchrun" in out) == (numGPU == 2)
        (model, loader, _, opt, _) = loopCalls[-1].args
        assert isinstance(model, nn.DataParallel) == (numGPU == 2)
        assert loader.batch_size == 5 * max(numGPU, 1)
        assert opt.param_groups[0]["lr"] == 0.001 * max(numGPU, 1)


def test_training_learns_with_a_rate_that_falls_to_a_tenth_every_ten_epochs(train, capsys):
    draw_class_folders(counts=(12, 4, 8))
    train("--epochs", "21", "--lr", "0.01")
    rates = re.findall(r"^Learning rate: (.+)$", capsys.readouterr().out, re.M)
    assert rates == ["0.01"] * 10 + ["0.001"] * 10 + ["0.0001"]
    # three colours; chance is 0.33
    accuracy = re.search(r"accuracy +([01]\.\d\d)", Path(config.REPORT_PATH).read_text())[1]
    assert float(accuracy) > 0.6
    # batch normalization trains with the rest of a network from random weights
    state = load(config.MODEL_PATH)
    for key, tensor in TinyNet().norm.state_dict().items():
        assert not torch.equal(state[f"baseModel.norm.{key}"], tensor), key


@pytest.mark.parametrize(
    ("flag", "setting", "isFrozen"),
    [
        ("--pretrained", None, True),
        ("--no-pretrained", None, False),
        ("--pretrained", False, False),
        ("--no-pretrained", True, True),
    ],
)
def test_batch_norm_is_frozen_as_its_setting_says_or_else_with_pretrained(
    train, flag, setting, isFrozen
):
    config.FREEZE_BATCH_NORM = setting
    train("--epochs", "1", flag)
    # also where the run goes on
    train("--epochs", "2", flag, "--resume")
    state = load(config.MODEL_PATH)
    for key, tensor in TinyNet().norm.state_dict().items():
        assert torch.equal(state[f"baseModel.norm.{key}"], tensor) == isFrozen, key
    assert read_settings()["config"]["FREEZE_BATCH_NORM"] == setting


def test_imagenet_weights_come_from_torch_hub_once_and_121_batch_norms_keep_theirs(monkeypatch):
    draw_class_folders(counts=(2, 1, 1))
    config.CLASSES = list(CLASSES)
    cache = Path("torch/hub/checkpoints").absolute()
    monkeypatch.setenv("TORCH_HOME", str(cache.parent.parent))
    cache.mkdir(parents=True)
    state = densenet121(weights=None).state_dict()
    for key, tensor in state.items():
        if key.endswith("running_mean"):
            # unlike that of an untrained network
            tensor += 0.01
    torch.save(state, cache / "densenet121-a639ec97.pth")
    run_script(*FLAGS, "0", "--epochs", "1", "--pretrained")
    shutil.rmtree(cache)
    # the checkpoint has what a resumed run needs
    run_script("--resume", "--epochs", "2")
    assert not cache.exists()
    found = load(config.MODEL_PATH)
    norms = [key for key in state if "norm" in key]
    assert len(norms) == 121 * len(nn.BatchNorm2d(1).state_dict())
    for key in norms:
        assert torch.equal(found[f"baseModel.{key}"], state[key]), key
    conv = "features.conv0.weight"
    assert 0 < abs(found[f"baseModel.{conv}"] - state[conv]).max() < 0.01


def test_weights_are_on_disk_before_report_and_plot_are_tried(train, monkeypatch):
    train("--epochs", "1")
    Path(config.MODEL_PATH).unlink()
    monkeypatch.setattr(reporting, "save_report", lambda *args: 1 / 0)
    monkeypatch.setattr(figures, "plot_history", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train("--epochs", "1", "--resume")
    assert len(load(config.MODEL_PATH)) == len(FoodClassifier(TinyNet(), 3).state_dict())


@pytest.fixture
def loop(monkeypatch):
    """Return (dataset, loader, model) for 15 images in batches of 4, of which the last has 3."""
    monkeypatch.setattr(devices, "compute_dtype", lambda *_: torch.float32)
    (config.IMAGE_SIZE, config.CLASSES) = (32, list(CLASSES))
    draw_class_folders()
    transform = eval_transform(32)
    (ds, loader) = get_dataloader(config.TRAIN, transform, bs=4, shuffle=False)
    return ds, loader, FoodClassifier(TinyNet(), 3).to(config.DEVICE)


@pytest.mark.parametrize("isScaled", [False, True])
def test_training_loss_and_accuracy_are_means_over_images(loop, isScaled):
    (ds, loader, model) = loop
    losses = []
    hits = []
    twin = copy.deepcopy(model)
    twinOpt = torch.optim.SGD(twin.parameters(), lr=0.1)
    for batch in torch.arange(15).split(4):
        x = torch.stack([ds[i][0] for i in batch]).to(config.DEVICE)
        y = torch.tensor([ds[i][1] for i in batch]).to(config.DEVICE)
        logits = twin(x)
        losses += cross_entropy(logits, y, reduction="none").tolist()
        hits += (logits.argmax(1) == y).tolist()
        twinOpt.zero_grad()
        cross_entropy(logits, y).backward()
        twinOpt.step()
    # scaled gradients train as plain ones do
    scaler = torch.amp.GradScaler(config.DEVICE.type, enabled=isScaled)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    (loss, accuracy) = train_distributed.train_one_epoch(
        model, loader, nn.CrossEntropyLoss(), opt, scaler
    )
    assert loss == pytest.approx(sum(losses) / 15, rel=1e-5)
    assert accuracy == pytest.approx(sum(hits) / 15)
    for key, tensor in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], tensor, rtol=1e-4, atol=1e-5)


def test_evaluation_is_a_mean_over_images_and_changes_nothing(loop):
    (ds, loader, model) = loop
    before = copy.deepcopy(model.state_dict())
    grads = []
    model.register_forward_hook(lambda *_: grads.append(torch.is_grad_enabled()))
    lossFunc = nn.CrossEntropyLoss()
    (loss, accuracy, preds, probs) = train_distributed.evaluate(model, loader, lossFunc)
    assert_same(model.state_dict(), before)
    # gradients would take memory
    assert not any(grads)
    with torch.no_grad():
        logits = model(torch.stack([x for x, _ in ds]).to(config.DEVICE)).cpu()
    y = torch.tensor(ds.targets)
    assert loss == pytest.approx(cross_entropy(logits, y).item(), rel=1e-5)
    assert preds == logits.argmax(1).tolist()
    assert probs == pytest.approx(logits.softmax(1).amax(1).tolist(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == y).float().mean().item())


def break_loss(monkeypatch, isTraining, number, value):
    """Have one loss of a run, so many steps into its training or validation, be value."""
    calls = []

    class Breaking(nn.CrossEntropyLoss):
        def forward(self, pred, y):
            calls.append(pred.requires_grad)
            isHere = calls[-1] == isTraining and calls.count(isTraining) == number
            return super().forward(pred, y) * (value if isHere else 1)

    monkeypatch.setattr(train_distributed.nn, "CrossEntropyLoss", Breaking)


def test_a_step_that_overflows_in_fp16_is_skipped_and_does_not_end_the_run(train, monkeypatch):
    monkeypatch.setattr(devices, "compute_dtype", lambda *_: torch.float16)
    break_loss(monkeypatch, True, 2, math.inf)
    train("--epochs", "1")
    state = load(config.CHECKPOINT_PATH)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    # of three steps
    assert {int(values["step"]) for values in state["opt"]["state"].values()} == {2}
    assert state["scaler"]["scale"] == 2**15
    assert sorted(read_tree()) == PRODUCTS


def test_precision_is_a_setting_that_a_resumed_run_may_change(train, loopCalls, capsys):
    # of a card whose fp16 is wrong: the first epochs went well
    config.PRECISION = "float16"
    train("--epochs", "1")
    config.PRECISION = "float32"
    train("--resume")
    found = [(call.args[0].module.dtype, call.args[4].is_enabled()) for call in loopCalls]
    assert found == [(torch.float16, True), (torch.float32, False)]
    out = capsys.readouterr().out
    assert "computing in torch.float16..." in out
    assert "computing in torch.float32..." in out
    assert json.loads(Path(config.SETTINGS_PATH).read_text())["config"]["PRECISION"] == "float32"


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_diverged_run_ends_and_keeps_the_last_good_checkpoint(train, monkeypatch, value):
    # in the second epoch, of two steps as the first
    break_loss(monkeypatch, False, 3, value)
    with pytest.raises(UserError, match='diverged.* --lr .* PRECISION = "float32"'):
        train()
    state = load(config.CHECKPOINT_PATH)
    assert state["epoch"] == 1
    # as weights
    assert_same(dict(load(config.MODEL_PATH)), dict(state["model"]))


@pytest.mark.parametrize("numWritten", [0, 1, 2, 3])
def test_a_full_disk_ends_a_run_and_keeps_what_was_there_before(train, monkeypatch, numWritten):
    train("--epochs", "1")
    before = read_tree()
    # settings.json is written first, then the history as it was, then checkpoint.pth, then the
    # history, then the weights
    error = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", Mock(side_effect=[None] * numWritten + [error]))
        train("--resume")
    after = read_tree()
    assert sorted(after) == sorted(before)
    written = ["settings.json", "history.csv", "checkpoint.pth"][:numWritten]
    for name, data in before.items():
        isSame = name not in written or name == "history.csv"
        assert (after[name] == data) == isSame, name
    # once there is room
    train("--resume")
    assert count_epochs() == 2


def test_a_resumed_run_has_the_flags_batch_and_rate_of_its_start(train, capsys, monkeypatch):
    monkeypatch.setattr(devices, "count_gpus", lambda: 2)
    train("--epochs", "1", "--seed", "7", "--resume")
    # where there is nothing to resume it begins
    assert re.search(r"no output.settings.json to resume: .*begins", capsys.readouterr().out)
    monkeypatch.setattr(devices, "count_gpus", lambda: 1)
    run_script("--resume", "--epochs", "2")
    out = capsys.readouterr().out
    assert re.findall(r"EPOCH: (.*)", out) == ["2/2"]
    (line,) = [line for line in out.splitlines() if "SEED" in line]
    for text in ("IMAGE_SIZE = 64", "SEED = 7", "PRETRAINED = False", "LR = 0.002"):
        assert text in line
    # of which only the epochs are a flag of now
    assert "overridden by flags" not in line
    assert "batch size of 10..." in out
    assert "Learning rate: 0.002\n" in out


def test_a_resumed_run_says_which_images_changed_and_which_test_images_it_knows(train, capsys):
    train("--epochs", "1")
    Path("dataset/training/Egg/0.jpg").unlink()
    draw_image("dataset/validation/Soup/new.jpg", 6, 9)
    # to its right place, as after a look at mistakes.png
    os.rename("dataset/training/Egg/4.jpg", "dataset/evaluation/Bread/4.jpg")
    capsys.readouterr()
    train("--resume")
    out = capsys.readouterr().out
    assert "the training images changed: 2 are gone, 0 are new, 13 in all..." in out
    assert "the validation images changed: 0 are gone, 1 are new, 10 in all..." in out
    assert "the test images changed: 0 are gone, 1 are new, 10 in all..." in out
    path = os.path.join("Bread", "4.jpg")
    assert f"new test images that the run was trained on: 1, such as {path};" in out
    capsys.readouterr()
    train("--resume", "--epochs", "3")
    assert "changed" not in capsys.readouterr().out


def test_more_epochs_in_config_py_are_trained_on_resume(edited, capsys):
    run_script()
    config.EPOCHS = 4
    capsys.readouterr()
    run_script("--resume")
    out = capsys.readouterr().out
    assert "resuming after epoch 2 of 4..." in out
    assert re.findall(r"EPOCH: (.*)", out) == ["3/4", "4/4"]
    # also after a flag, which counts as long as the line is not edited again
    run_script("--resume", "--epochs", "5")
    run_script("--resume")
    assert count_epochs() == 5
    config.EPOCHS = 6
    run_script("--resume")
    assert count_epochs() == 6


def test_a_run_that_goes_on_with_more_epochs_is_that_of_an_undisturbed_one(edited):
    config.EPOCHS = 3
    run_script()
    os.rename("output", "whole")
    config.EPOCHS = 1
    run_script()
    config.EPOCHS = 3
    run_script("--resume")
    (found, expected) = (load(config.CHECKPOINT_PATH), load("whole/checkpoint.pth"))
    for name in ("model", "opt", "lrScheduler", "epoch"):
        assert_same(found[name], expected[name])
    assert without_time(found)["H"] == without_time(expected)["H"]


@pytest.mark.parametrize("isFlag", [False, True])
def test_resume_with_another_rate_is_one_line_with_both(edited, isFlag, capsys):
    config.EPOCHS = 1
    run_script()
    before = read_tree()
    flags = ["--resume", "--epochs", "2"]
    if isFlag:
        flags += ["--lr", "0.005"]
    else:
        config.LR = 0.005
    capsys.readouterr()
    line = fail(capsys, *flags)
    assert "LR is 0.001 in the run in output/ and 0.005 now" in line
    assert "without --resume" in line
    assert read_tree() == before
    # set back, as it says
    config.LR = 0.001
    run_script("--resume", "--epochs", "2")
    assert count_epochs() == 2


def test_resume_names_every_setting_that_was_edited_in_its_one_line(edited, capsys):
    run_script()
    (config.SEED, config.FREEZE_BATCH_NORM, config.STD) = (7, True, [0.5] * 3)
    # what changes no result may be another
    (config.PRED_BATCH_SIZE, config.TEST) = (9, "mytest")
    line = fail(capsys, "--resume")
    assert "SEED is 42 in the run in output/ and 7 now" in line
    assert "FREEZE_BATCH_NORM is None in the run in output/ and True now" in line
    assert "STD is " in line
    assert "PRED_BATCH_SIZE" not in line and "TEST" not in line


def test_a_new_run_moves_an_earlier_one_aside_at_its_start(train, capsys, monkeypatch):
    train("--epochs", "1")
    Path(config.RESULTS_PATH).write_text("predictions")
    earlier = read_tree()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_epoch(patch, 1)
        train("--seed", "7")
    (folder,) = Path("output").glob("run-*")
    assert read_tree(folder) == earlier
    out = capsys.readouterr().out
    advice = "move the new files away, move these back, and add --resume..."
    assert f"moved to {folder}; to continue that run, {advice}" in out
    assert sorted(path for path in read_tree() if "/" not in path) == ["settings.json"]
    # a start that came to nothing is overwritten
    train("--seed", "7")
    assert list(Path("output").glob("run-*")) == [folder]
    assert sorted(path for path in read_tree() if "/" not in path) == PRODUCTS
    # another seed is another network
    weights = load(config.MODEL_PATH)["classifier.weight"]
    assert not torch.equal(weights, load(folder / "food_classifier.pth")["classifier.weight"])


@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupted_new_run_is_the_one_that_resume_continues(
    edited, number, capsys, monkeypatch
):
    # one that is complete, then another rate
    run_script()
    config.LR = 0.002
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_epoch(patch, number)
        run_script()
    capsys.readouterr()
    run_script("--resume")
    out = capsys.readouterr().out
    epochs = ["1/2", "2/2"][number - 1 :]
    assert re.findall(r"EPOCH: (.*)", out) == epochs
    assert out.count("Learning rate: 0.002\n") == len(epochs)
    assert len(load(config.CHECKPOINT_PATH)["H"]["train_loss"]) == 2
    (folder,) = Path("output").glob("run-*")
    assert read_settings(folder)["config"]["LR"] == 0.001
    assert read_settings()["config"]["LR"] == 0.002


def test_an_earlier_run_that_is_moved_back_can_be_resumed(train, edited):
    run_script()
    # another rate, which was a mistake
    train("--lr", "0.1")
    (folder,) = Path("output").glob("run-*")
    shutil.move("output", "mistake")
    shutil.move(Path("mistake", folder.name), "output")
    config.EPOCHS = 3
    run_script("--resume")
    assert count_epochs() == 3
    assert load(config.CHECKPOINT_PATH)["opt"]["param_groups"][0]["initial_lr"] == 0.001


@pytest.fixture
def trained(edited, capsys):
    """Have a run in output/ of an epoch with a rate of 0, and its weights in mine.pth."""
    config.EPOCHS = 1
    run_script("--lr", "1e-12")
    shutil.copy(config.MODEL_PATH, "mine.pth")
    capsys.readouterr()


def test_a_run_begins_with_weights_of_ones_own_and_with_a_rate_of_its_own(trained, capsys):
    run_script("--weights", "mine.pth", "--lr", "1e-12", "--seed", "5")
    out = capsys.readouterr().out
    assert "[INFO] beginning with the weights in " in out
    assert "new..." not in out
    state = load(config.CHECKPOINT_PATH)
    assert (state["epoch"], state["opt"]["param_groups"][0]["initial_lr"]) == (1, 1e-12)
    # such a rate changes nothing but the statistics
    mine = load("mine.pth")
    for name, tensor in load(config.MODEL_PATH).items():
        assert torch.allclose(tensor, mine[name], atol=1e-6) or "running" in name or "num" in name
    # another seed alone would be another network
    run_script("--lr", "1e-12", "--seed", "5")
    weights = load(config.MODEL_PATH)["classifier.weight"]
    assert not torch.allclose(weights, mine["classifier.weight"], atol=1e-3)


def test_weights_of_other_classes_begin_a_run_with_a_new_classifier_and_a_line(trained, capsys):
    draw_class_folders(classes=["Bread", "Egg", "Pie", "Soup"])
    config.CLASSES = ["Bread", "Egg", "Pie", "Soup"]
    run_script("--weights", "mine.pth", "--lr", "1e-12")
    assert "trained on other classes: the classifier is new..." in capsys.readouterr().out
    (found, mine) = (load(config.MODEL_PATH), load("mine.pth"))
    assert found["classifier.weight"].shape == (4, 8)
    name = "baseModel.conv.weight"
    torch.testing.assert_close(found[name], mine[name])


def test_a_run_begins_with_the_weights_of_the_run_that_it_sets_aside(trained, monkeypatch, capsys):
    flags = ["--weights", config.MODEL_PATH, "--lr", "1e-12"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_epoch(patch, 1)
        run_script(*flags)
    (folder,) = Path("output").glob("run-*")
    record = read_settings()
    assert record["weights"] == os.path.abspath(config.MODEL_PATH)
    assert record["weights moved to"] == os.path.abspath(folder / "food_classifier.pth")
    # as torchrun restarts it, and as a person does
    for command in ([*flags, "--resume"], ["--resume", "--epochs", "2"]):
        capsys.readouterr()
        run_script(*command)
        assert ("beginning with the weights" in capsys.readouterr().out) == (
            command[0] != "--resume"
        )
    assert count_epochs() == 2
    assert list(Path("output").glob("run-*")) == [folder]
    mine = load("mine.pth")["classifier.weight"]
    assert torch.allclose(load(config.MODEL_PATH)["classifier.weight"], mine, atol=1e-6)


def test_a_run_is_not_resumed_with_other_weights_than_it_began_with(trained):
    before = read_tree()
    with pytest.raises(UserError, match="began with no weights of your own; leave out --weights"):
        run_script("--resume", "--weights", "mine.pth")
    assert read_tree() == before
    run_script("--weights", "mine.pth")
    os.rename("mine.pth", "other.pth")
    with pytest.raises(UserError, match=r"began with .*mine\.pth"):
        run_script("--resume", "--weights", "other.pth")
    # its checkpoint has all that it needs
    config.EPOCHS = 2
    run_script("--resume", "--weights", "mine.pth")
    assert count_epochs() == 2


@pytest.mark.parametrize("text", ["", "<!DOCTYPE html>", "no weights"])
def test_a_file_of_no_weights_costs_the_earlier_run_nothing(trained, text):
    Path("mine.pth").write_text(text)
    before = read_tree()
    with pytest.raises(UserError, match=r"^mine\.pth is "):
        run_script("--weights", "mine.pth")
    assert read_tree() == before


@pytest.mark.parametrize("isPretrained", [False, True])
def test_weights_of_ones_own_take_the_place_of_those_of_imagenet(
    trained, monkeypatch, isPretrained
):
    config.PRETRAINED = isPretrained
    load_densenet = Mock(wraps=train_distributed.load_densenet)
    monkeypatch.setattr(train_distributed, "load_densenet", load_densenet)
    run_script("--weights", "mine.pth")
    load_densenet.assert_called_once_with(pretrained=False)


def test_a_resumed_run_whose_rate_is_too_low_to_learn_says_what_to_do(edited, capsys):
    config.EPOCHS = 19
    draw_class_folders(counts=(1, 1, 1))
    run_script()
    config.EPOCHS = 20
    run_script("--resume")
    # a tenth of the first
    assert "too low" not in capsys.readouterr().out
    run_script("--resume", "--epochs", "21")
    out = capsys.readouterr().out
    assert "the learning rate is down to 1e-05, too low to learn anything new; " in out
    assert f"--weights {config.MODEL_PATH}" in out
    assert "Learning rate: 1e-05\n" in out


def test_the_history_is_a_table_that_a_killed_run_completes(edited, monkeypatch):
    config.EPOCHS = 3
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_epoch(patch, 3)
        run_script()
    # killed after its checkpoint, before its table
    os.remove(config.HISTORY_PATH)
    run_script("--resume")
    os.rename("output", "resumed")
    run_script()
    tables = []
    for folder in ("resumed", "output"):
        text = Path(folder, "history.csv").read_text(encoding="utf-8-sig")
        lines = text.splitlines()
        assert lines[0] == "epoch,rate,train_loss,train_acc,val_loss,val_acc,seconds"
        assert all(float(line.rpartition(",")[2]) >= 0 for line in lines[1:])
        tables.append([line.rpartition(",")[0] for line in lines])
    assert len(tables[0]) == 4
    assert tables[0] == tables[1]
    # each row is there with its checkpoint
    assert tables[0][3].startswith("3,0.001,")


def test_evaluation_of_the_weights_gives_the_very_report_of_the_training(train, capsys):
    train()
    before = read_tree()
    # config.py by now says other things, which the weights know better
    config.IMAGE_SIZE = 224
    capsys.readouterr()
    run_script("--evaluate")
    # later weights from elsewhere
    os.rename(config.MODEL_PATH, "mine.pth")
    run_script("--evaluate", "--weights", "mine.pth", "--local-batch-size", "7")
    assert capsys.readouterr().out.count(before["classification_report.txt"].decode()) == 2
    del before["food_classifier.pth"]
    # the run's own stay as they are
    assert before.items() <= read_tree().items()
    folders = sorted(Path("output").glob("evaluation-*"))
    date = r"\d{4}-\d\d-\d\d-\d{6}"
    assert re.fullmatch(f"evaluation-food_classifier-{date}", folders[0].name)
    assert re.fullmatch(f"evaluation-mine-{date}", folders[1].name)
    for folder in folders:
        report = read_tree(folder)
        del report["settings.json"]
        assert {"classification_report.txt", "predictions.csv", "mistakes.png"} < set(report)
        assert report == {name: before[name] for name in report}


def test_two_evaluations_of_one_second_have_a_folder_each_that_names_weights_and_images(
    train, monkeypatch
):
    train("--epochs", "1")
    draw_class_folders("mine", counts=(0, 0, 4))
    strftime = time.strftime
    monkeypatch.setattr(time, "strftime", lambda text, *_: strftime(text, time.gmtime(0)))
    run_script("--evaluate")
    # a test folder of one's own
    config.TEST = "mine/evaluation"
    run_script("--evaluate")
    (first, second) = sorted(Path("output").glob("evaluation-*"))
    assert first.name == "evaluation-food_classifier-1970-01-01-000000"
    assert second.name == f"{first.name}-again"
    (one, two) = (read_settings(first), read_settings(second))
    for settings in (one, two):
        assert settings["weights"] == os.path.abspath(config.MODEL_PATH)
        assert settings["digest of the weights"] == one["digest of the weights"]
    assert one["images"] == os.path.abspath("dataset/evaluation")
    assert two["images"] == os.path.abspath("mine/evaluation")
    assert (one["number of images"], two["number of images"]) == (9, 12)
    assert one["digest of their names and sizes"] != two["digest of their names and sizes"]
    assert (second / "predictions.csv").read_text().count("mine/evaluation") == 12


FLAGS_OF_A_TRAINING = ["--resume", "--epochs 2", "--lr 0.01", "--seed 7", "--seed 0"]
FLAGS_OF_A_TRAINING += ["--image-size 64", "--pretrained", "--no-pretrained"]


@pytest.mark.parametrize("flag", FLAGS_OF_A_TRAINING)
def test_evaluation_refuses_flags_that_it_would_ignore(train, flag, capsys):
    with pytest.raises(SystemExit) as caught:
        run_script("--evaluate", *flag.split())
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--evaluate trains nothing" in line
    assert flag.split()[0].removeprefix("--").removeprefix("no-") in line
    assert not os.path.exists("output")


@pytest.mark.parametrize(("numGPU", "worldSize"), [(0, 1), (1, 1), (2, 1), (2, 2)])
def test_evaluation_uses_all_devices(train, monkeypatch, numGPU, worldSize):
    train("--epochs", "1")
    evaluate = Mock(return_value=(0, 0, [0] * 9, [0.5] * 9))
    monkeypatch.setattr(devices, "count_gpus", lambda: numGPU)
    monkeypatch.setattr(processes, "get_world_size", lambda: worldSize)
    monkeypatch.setattr(processes, "join_processes", lambda: worldSize)
    monkeypatch.setattr(train_distributed, "evaluate", evaluate)
    run_script("--evaluate", "--local-batch-size", "4")
    (model, loader, _) = evaluate.call_args.args
    # a process of torchrun has a GPU of its own
    assert isinstance(model, nn.DataParallel) == (numGPU == 2 and worldSize == 1)
    assert loader.batch_size * worldSize == 4 * max(numGPU, 1)


def test_progress_bars_leave_the_printed_lines_whole(train, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    train()
    text = terminal.getvalue()
    for kind in ("training", "evaluating"):
        assert f"{kind}: " in text
        # gone in the end
        assert re.match(r"[^\r]*\r +[\r\x1b]", text.rpartition(f"{kind}: ")[2])
    for line in ("[INFO] EPOCH: 1/2", "[INFO] EPOCH: 2/2", "Learning rate: 0.001"):
        # at the beginning of a row, from which the bar was removed
        assert re.search(rf"(\n|\r *\r){re.escape(line)}\n", text)
    # the bar over the epochs stays
    assert re.search(r"\rall epochs: 100%[^\r]* 2/2 [^\r]*\n\[INFO\] total time taken", text)
