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

import train_distributed
from pyimagesearch import checkpoint, config, create_dataloaders, devices, reporting
from pyimagesearch.cli import UserError
from pyimagesearch.create_dataloaders import get_dataloader
from pyimagesearch.food_classifier import FoodClassifier

import pytest
import torch
from helpers import CLASSES, FLAGS, TinyNet, assert_same, draw_class_folders, load, read_tree
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision import transforms
from torchvision.models import densenet121

PRODUCTS = "checkpoint.pth classification_report.txt confusion_matrix.png food_classifier.pth "
PRODUCTS += "mistakes.png model_training.png predictions.csv settings.json"
PRODUCTS = PRODUCTS.split()


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
    assert list(history) == ["train_loss", "train_acc", "val_loss", "val_acc"]
    assert {len(values) for values in history.values()} == {2}


def test_the_settings_of_a_run_are_in_a_file_with_a_line_for_each(train):
    train("--epochs", "1", "--seed", "7")
    text = Path(config.SETTINGS_PATH).read_text()
    settings = json.loads(text)
    assert text.count("\n") > len(settings)
    for name in checkpoint.SETTINGS:
        assert settings[name] == getattr(config, name)
    assert (settings["SEED"], settings["CLASSES"]) == (7, CLASSES)
    assert settings["number of devices"] == devices.count_devices()
    assert settings["the training set"].startswith("15 images")


def test_augmentation_loss_and_optimizer_are_those_of_the_tutorial(train, loopCalls):
    train("--epochs", "1")
    (_, loader, lossFunc, opt, scaler) = loopCalls[0].args
    steps = [transforms.RandomResizedCrop(64), transforms.RandomHorizontalFlip()]
    steps += [transforms.RandomRotation(90), transforms.ToTensor()]
    steps += [transforms.Normalize(mean=config.MEAN, std=config.STD)]
    assert repr(loader.dataset.transform) == repr(transforms.Compose(steps))
    assert vars(lossFunc) == vars(nn.CrossEntropyLoss())
    assert type(opt) is torch.optim.Adam
    plain = torch.optim.Adam([torch.zeros(1)], lr=config.LR, fused=True)
    (found, expected) = (o.param_groups[0] | {"params": None} for o in (opt, plain))
    assert found == expected | {"initial_lr": config.LR}
    assert scaler.is_enabled() == (devices.compute_dtype() == torch.float16)


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


def test_imagenet_weights_come_from_torch_hub_once_and_121_batch_norms_keep_theirs(monkeypatch):
    draw_class_folders(counts=(2, 1, 1))
    config.CLASSES = list(CLASSES)
    cache = Path("torch/hub/checkpoints").absolute()
    monkeypatch.setenv("TORCH_HOME", str(cache.parent.parent))
    cache.mkdir(parents=True)
    state = densenet121(weights=None).state_dict()
    # statistics unlike those of an untrained network
    state = {k: v + 0.01 if k.endswith("running_mean") else v for k, v in state.items()}
    torch.save(state, cache / "densenet121-a639ec97.pth")
    train_distributed.main([*FLAGS, "0", "--epochs", "1", "--pretrained"])
    shutil.rmtree(cache)
    # the checkpoint has what a resumed run needs
    train_distributed.main(["--resume", "--epochs", "2"])
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
    for name in ("save_report", "save_history"):
        monkeypatch.setattr(reporting, name, lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train("--epochs", "1", "--resume")
    assert len(load(config.MODEL_PATH)) == len(FoodClassifier(TinyNet(), 3).state_dict())


@pytest.fixture
def loop(monkeypatch):
    """Return (dataset, loader, model) for 15 images in batches of 4, of which the last has 3."""
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.float32)
    (config.IMAGE_SIZE, config.CLASSES) = (32, list(CLASSES))
    draw_class_folders()
    transform = create_dataloaders.test_transform()
    (ds, loader) = get_dataloader(config.TRAIN, transform, bs=4, shuffle=False)
    return ds, loader, FoodClassifier(TinyNet(), 3).to(config.DEVICE)


@pytest.mark.parametrize("isScaled", [False, True])
def test_training_loss_and_accuracy_are_means_over_images(loop, isScaled):
    (ds, loader, model) = loop
    (losses, hits, twin) = ([], [], copy.deepcopy(model))
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
    (before, grads) = (copy.deepcopy(model.state_dict()), [])
    model.register_forward_hook(lambda *_: grads.append(torch.is_grad_enabled()))
    (loss, accuracy, preds) = train_distributed.evaluate(model, loader, nn.CrossEntropyLoss())
    assert_same(model.state_dict(), before)
    # gradients would take memory
    assert not any(grads)
    with torch.no_grad():
        logits = model(torch.stack([x for x, _ in ds]).to(config.DEVICE)).cpu()
    y = torch.tensor(ds.targets)
    assert loss == pytest.approx(cross_entropy(logits, y).item(), rel=1e-5)
    assert [label for label, _ in preds] == logits.argmax(1).tolist()
    assert [p for _, p in preds] == pytest.approx(logits.softmax(1).amax(1).tolist(), rel=1e-5)
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
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.float16)
    break_loss(monkeypatch, True, 2, math.inf)
    train("--epochs", "1")
    state = load(config.CHECKPOINT_PATH)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    # of three steps
    assert {int(values["step"]) for values in state["opt"]["state"].values()} == {2}
    assert state["scaler"]["scale"] == 2**15
    assert sorted(read_tree()) == PRODUCTS


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_diverged_run_ends_and_keeps_the_last_good_checkpoint(train, monkeypatch, value):
    # in the second epoch, of two steps as the first
    break_loss(monkeypatch, False, 3, value)
    with pytest.raises(UserError, match="diverged.* --lr"):
        train()
    state = load(config.CHECKPOINT_PATH)
    assert state["epoch"] == 1
    # as weights
    assert_same(dict(load(config.MODEL_PATH)), dict(state["model"]))


def test_a_full_disk_ends_a_run_and_keeps_the_checkpoint_before(train, monkeypatch):
    train("--epochs", "1")
    before = read_tree()
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=error))
    with pytest.raises(OSError, match="No space left"):
        train("--resume")
    assert read_tree() == before


def test_a_resumed_run_has_the_settings_batch_and_rate_of_its_first_start(
    train, capsys, monkeypatch
):
    monkeypatch.setattr(devices, "count_gpus", lambda: 2)
    train("--epochs", "1", "--seed", "7", "--resume")
    # where there is nothing to resume it begins
    assert re.search(r"no output.checkpoint.pth to resume: .*begins", capsys.readouterr().out)
    (config.SEED, config.LR, config.IMAGE_SIZE, config.EPOCHS) = (42, 0.01, 224, 20)
    (config.PRETRAINED, config.STD, config.LOCAL_BATCH_SIZE) = (True, [0.5] * 3, 32)
    monkeypatch.setattr(devices, "count_gpus", lambda: 1)
    Path("dataset/training/Egg/0.jpg").unlink()
    train_distributed.main(["--resume", "--epochs", "2"])
    out = capsys.readouterr().out
    assert re.findall(r"EPOCH: (.*)", out) == ["2/2"]
    taken = "taken from the checkpoint: IMAGE_SIZE = 64, SEED = 7, PRETRAINED = False"
    assert f"[INFO] {taken}, STD = [0.229" in out
    assert "batch size of 10..." in out
    assert re.search(r"training set changed: 15 images .*then, 14 images .*now", out)
    assert "Learning rate: 0.002\n" in out


def test_a_new_run_moves_an_earlier_one_aside_once_it_has_a_checkpoint(train, capsys, monkeypatch):
    train("--epochs", "1")
    Path(config.RESULTS_PATH).write_text("predictions")
    earlier = read_tree()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train_distributed, "evaluate", lambda *_: 1 / 0)
        train("--seed", "7")
    # a start that came to nothing costs nothing
    assert read_tree() == earlier
    train("--seed", "7")
    (folder,) = Path("output").glob("run-*")
    # another seed is another network
    weights = load(config.MODEL_PATH)["classifier.weight"]
    assert not torch.equal(weights, load(folder / "food_classifier.pth")["classifier.weight"])
    assert f"moved to {folder}..." in capsys.readouterr().out
    assert read_tree(folder) == earlier
    assert sorted(path for path in read_tree() if "/" not in path) == PRODUCTS


def test_evaluation_of_the_weights_gives_the_very_report_of_the_training(train, capsys):
    train()
    before = read_tree()
    # config.py by now says other things, which the weights know better
    config.IMAGE_SIZE = 224
    capsys.readouterr()
    train_distributed.main(["--evaluate"])
    # a later one, of weights elsewhere, is in a folder of its own
    os.rename(config.MODEL_PATH, "mine.pth")
    time.sleep(1)
    train_distributed.main(["--evaluate", "--weights", "mine.pth", "--local-batch-size", "7"])
    assert capsys.readouterr().out.count(before["classification_report.txt"].decode()) == 2
    del before["food_classifier.pth"]
    assert before.items() <= read_tree().items()
    (first, second) = (read_tree(folder) for folder in Path("output").glob("evaluation-*"))
    assert first == second == {name: before[name] for name in first}
    assert {"classification_report.txt", "predictions.csv", "mistakes.png"} < set(first)


@pytest.mark.parametrize(("numGPU", "worldSize"), [(0, 1), (1, 1), (2, 1), (2, 2)])
def test_evaluation_uses_all_devices(train, monkeypatch, numGPU, worldSize):
    train("--epochs", "1")
    evaluate = Mock(return_value=(0, 0, [(0, 0.5)] * 9))
    monkeypatch.setattr(devices, "count_gpus", lambda: numGPU)
    monkeypatch.setattr(devices, "get_world_size", lambda: worldSize)
    monkeypatch.setattr(train_distributed, "evaluate", evaluate)
    train_distributed.main(["--evaluate", "--local-batch-size", "4"])
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
    assert re.search(r"\r100%[^\r]* 2/2 [^\r]*\n\[INFO\] total time taken", text)
