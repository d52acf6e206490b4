import copy
import io
import math
import os
import re
import sys
from pathlib import Path

import distributed_inference
import train_distributed
from pyimagesearch import (
    checkpoint,
    config,
    create_dataloaders,
    devices,
    food_classifier,
    reporting,
)
from pyimagesearch.cli import UserError
from pyimagesearch.create_dataloaders import get_dataloader
from pyimagesearch.food_classifier import FoodClassifier
from pyimagesearch.reporting import progress

import pytest
import torch
from conftest import CLASSES, TinyNet, draw_class_folders, run_forked
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models import densenet121


@pytest.fixture
def tinyRun(monkeypatch):
    """Set up a run of train_distributed.py that takes a second: little data, a small network."""
    draw_class_folders(Path("dataset"))
    config.CLASSES = list(CLASSES)
    monkeypatch.setattr(food_classifier, "densenet121", lambda weights: TinyNet())
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.float32)
    flags = "--image-size 64 --epochs 2 --num-workers 0 --local-batch-size 4 --no-pretrained"
    monkeypatch.setattr("sys.argv", ["train_distributed.py", *flags.split()])


@pytest.fixture
def hubCache(tmp_path, monkeypatch):
    """Put a state dict where torch hub caches the ImageNet weights; return it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    state = densenet121(weights=None).state_dict()
    # statistics unlike those of an untrained network
    state = {k: v + 0.5 if k.endswith("running_mean") else v for k, v in state.items()}
    cachePath = tmp_path / "torch/hub/checkpoints/densenet121-a639ec97.pth"
    cachePath.parent.mkdir(parents=True)
    torch.save(state, cachePath)
    return state


def test_prints_its_lines_in_order_and_no_warning(finishedRun):
    ((folder, _), (_, train, *_)) = finishedRun
    epoch = (
        r"\[INFO\] EPOCH: 1/2\n"
        r"Train loss: \d\.\d{6}, Train accuracy: [01]\.\d{4}\n"
        r"Val loss: \d\.\d{6}, Val accuracy: [01]\.\d{4}\n"
    )
    report = (folder / "output" / "classification_report.txt").read_text()
    assert re.fullmatch(
        r"\[INFO\] overridden by flags: IMAGE_SIZE = 64, LOCAL_BATCH_SIZE = 9, EPOCHS = 2, "
        r"(NUM_WORKERS = 2, )?PRETRAINED = False\.\.\.\n"
        r"\[INFO\] running on \d+ x .+, computing in b?float(16|32)\.\.\.\n"
        r"\[INFO\] dataset.training: 33 images of 11 classes\.\.\.\n"
        r"\[INFO\] dataset.validation: 22 images of 11 classes\.\.\.\n"
        r"\[INFO\] dataset.evaluation: 22 images of 11 classes\.\.\.\n"
        r"\[INFO\] number of GPUs found: \d+\.\.\.\n"
        r"\[INFO\] using a batch size of \d+\.\.\.\n"
        r"\[INFO\] training the network\.\.\.\n"
        + epoch
        + epoch.replace("1/2", "2/2")
        + r"\[INFO\] total time taken to train the model: \d+\.\d\ds\n"
        r"\[INFO\] evaluating network\.\.\.\n"
        + re.escape(report)
        + r"\n\[INFO\] output.mistakes\.png shows \d+ of \d+ images\.\.\.\n"
        r"\[INFO\] saved output.food_classifier.pth, output.classification_report.txt, .*\n"
        r"\[INFO\] to look at predictions: python distributed_inference.py\n",
        train.stdout,
    )
    assert "Noodles" in report
    assert re.search(r"accuracy +[01]\.\d\d +22\n", report)
    # a log file is kept free of progress bars
    assert train.stderr == ""


def test_writes_the_listed_files_and_no_other(finishedRun):
    ((folder, _), _) = finishedRun
    assert sorted(os.listdir(folder)) == ["Food-11", "dataset", "output"]
    assert sorted(os.listdir(folder / "output")) == [
        ".lock",
        "checkpoint.pth",
        "classification_report.txt",
        "confusion_matrix.png",
        "food_classifier.pth",
        "mistakes.png",
        "model_training.csv",
        "model_training.png",
        "predictions.csv",
        "results.png",
        "settings.json",
    ]


def test_a_script_after_the_tutorial_runs_and_weights_move_both_ways(finishedRun, monkeypatch):
    ((own, tutorial), (*_, run)) = finishedRun
    assert run.stdout.startswith("33 22 ['Bread', 'Dairy_product', ")
    # ours load into the tutorial's model
    model = FoodClassifier(densenet121(weights=None), 11)
    model.load_state_dict(
        torch.load(own / config.MODEL_PATH, map_location="cpu", weights_only=True)
    )
    # the tutorial's load into ours, and are evaluated; their file does not know its image size
    monkeypatch.chdir(tutorial)
    monkeypatch.setattr("sys.argv", ["distributed_inference.py"])
    distributed_inference.main()
    flags = "--evaluate --image-size 64 --num-workers 0".split()
    monkeypatch.setattr("sys.argv", ["train_distributed.py", *flags])
    train_distributed.main()
    (table,) = Path("output").glob("evaluation-*/predictions.csv")
    assert len(table.read_text().splitlines()) == 1 + 22


class Terminal(io.StringIO):
    """What a terminal would have received."""

    def isatty(self):
        return True

    def read_screen(self):
        """Return the lines that it shows in the end."""
        (rows, row, column) = ([""], 0, 0)
        for part in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", self.getvalue()):
            if part == "\x1b[A":
                row -= 1
            elif part == "\r":
                column = 0
            elif part == "\n":
                (row, column) = (row + 1, 0)
                rows += [""] * (row == len(rows))
            else:
                before = rows[row].ljust(column)
                rows[row] = before[:column] + part + before[column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in rows]


@pytest.mark.parametrize("columns", [80, 200])
def test_progress_bars_fit_and_leave_the_printed_lines_whole(tinyRun, monkeypatch, columns):
    def show_eagerly(iterable, **options):
        bar = progress(iterable, ncols=columns, **options)
        bar.mininterval = 0
        return bar

    monkeypatch.setattr(train_distributed, "progress", show_eagerly)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    train_distributed.main()
    text = terminal.getvalue()
    for kind in ("training", "evaluating"):
        bars = re.findall(rf"{kind}: +\d+%\|[^|]{{4,}}\|[^|\r]*\]", text)
        # each epoch begins at 0 % and ends at 100 %
        assert len(bars) > 4
        assert any("100%" in bar for bar in bars)
        assert {len(bar) for bar in bars} == {columns}
    screen = terminal.read_screen()
    first = screen.index("[INFO] training the network...")
    assert screen[first + 1] == "[INFO] EPOCH: 1/2"
    assert re.fullmatch(r"Train loss: \d\.\d{6}, Train accuracy: [01]\.\d{4}", screen[first + 2])
    assert re.fullmatch(r"Val loss: \d\.\d{6}, Val accuracy: [01]\.\d{4}", screen[first + 3])
    assert screen[first + 4] == "[INFO] EPOCH: 2/2"
    # the bar over the epochs stays; those over batches are gone
    assert re.match(r"100%.* 2/2 ", screen[first + 7])
    assert screen[first + 8].startswith("[INFO] total time taken")
    assert not any(kind in line for line in screen[first:] for kind in ("training:", "evaluating:"))


def test_imagenet_weights_come_from_the_hub(hubCache):
    state = food_classifier.load_densenet(pretrained=True).state_dict()
    for key in hubCache:
        assert torch.equal(state[key].cpu(), hubCache[key]), key


@pytest.mark.parametrize("flag", ["--pretrained", "--no-pretrained"])
def test_batch_norm_is_frozen_when_fine_tuning_and_trains_otherwise(tinyRun, monkeypatch, flag):
    monkeypatch.setattr("sys.argv", [*sys.argv, flag])
    train_distributed.main()
    state = checkpoint.load_state(config.MODEL_PATH)
    for key, tensor in TinyNet().norm.state_dict().items():
        isFrozen = torch.equal(state[f"baseModel.norm.{key}"], tensor)
        assert isFrozen == (flag == "--pretrained"), key


def test_training_loss_and_accuracy_are_means_over_images(monkeypatch):
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.float32)
    config.IMAGE_SIZE = 32
    # 15 images in batches of 4: the last has 3
    draw_class_folders(Path("dataset"))
    transform = create_dataloaders.test_transform()
    (ds, loader) = get_dataloader(config.TRAIN, transform, bs=4, shuffle=False)
    model = FoodClassifier(TinyNet(), 3).to(config.DEVICE)
    (losses, hits, twin) = ([], [], FoodClassifier(TinyNet(), 3).to(config.DEVICE))
    twin.load_state_dict(model.state_dict())
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

    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(config.DEVICE.type, enabled=False)
    (loss, accuracy) = train_distributed.train_one_epoch(
        model, loader, nn.CrossEntropyLoss(), opt, scaler
    )
    assert loss == pytest.approx(sum(losses) / 15, rel=1e-5)
    assert accuracy == pytest.approx(sum(hits) / 15)


def test_a_step_whose_gradients_overflow_in_fp16_is_skipped(monkeypatch):
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.float16)
    config.IMAGE_SIZE = 64
    # 15 images in batches of 5
    draw_class_folders(Path("dataset"))
    (_, loader) = get_dataloader(config.TRAIN, create_dataloaders.train_transform(), bs=5)
    model = FoodClassifier(TinyNet(), 3).to(config.DEVICE)
    opt = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler(config.DEVICE.type, init_scale=1024)
    (dtypes, before) = ([], [])
    model.baseModel.conv.register_forward_hook(lambda *args: dtypes.append(args[-1].dtype))
    # the second step alone overflows
    model.register_forward_pre_hook(lambda *_: before.append(copy.deepcopy(model.state_dict())))
    model.classifier.bias.register_hook(
        lambda grad: grad * float("inf") if len(before) == 2 else grad
    )
    (loss, _) = train_distributed.train_one_epoch(model, loader, nn.CrossEntropyLoss(), opt, scaler)
    assert set(dtypes) == {torch.float16}
    assert math.isfinite(loss)
    (first, second, third, last) = (
        state["classifier.weight"] for state in [*before, model.state_dict()]
    )
    assert not torch.equal(first, second)
    assert torch.equal(second, third)
    assert not torch.equal(third, last)
    assert scaler.get_scale() == 512
    assert all(state["step"] == 2 for state in opt.state.values())


def test_scaled_gradients_train_as_plain_ones_do(monkeypatch):
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.float32)
    config.IMAGE_SIZE = 64
    draw_class_folders(Path("dataset"))
    weights = []
    for isScaled in (False, True):
        torch.manual_seed(0)
        (_, loader) = get_dataloader(config.TRAIN, create_dataloaders.train_transform(), bs=5)
        model = FoodClassifier(TinyNet(), 3).to(config.DEVICE)
        opt = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        scaler = torch.amp.GradScaler(config.DEVICE.type, enabled=isScaled)
        train_distributed.train_one_epoch(model, loader, nn.CrossEntropyLoss(), opt, scaler)
        weights.append(model.state_dict())
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, rtol=1e-4, atol=1e-5)


def test_evaluation_is_a_mean_over_images_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.float32)
    config.IMAGE_SIZE = 32
    draw_class_folders(Path("dataset"))
    transform = create_dataloaders.test_transform()
    (ds, loader) = get_dataloader(config.TRAIN, transform, bs=4, shuffle=False)
    model = FoodClassifier(TinyNet(), 3).to(config.DEVICE)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    (loss, accuracy, preds) = train_distributed.evaluate(model, loader, nn.CrossEntropyLoss())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with torch.no_grad():
        logits = model(torch.stack([x for x, _ in ds]).to(config.DEVICE)).cpu()
    y = torch.tensor(ds.targets)
    assert loss == pytest.approx(cross_entropy(logits, y).item(), rel=1e-5)
    assert [label for label, _ in preds] == logits.argmax(1).tolist()
    assert [p for _, p in preds] == pytest.approx(logits.softmax(1).amax(1).tolist(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == y).float().mean().item())


def test_a_dataset_of_other_classes_than_config_stops_the_run(tinyRun):
    config.CLASSES = ["Soup", "Egg", "Pizza"]
    with pytest.raises(UserError, match="different: Bread, Pizza.*run prepare_dataset.py first"):
        train_distributed.main()
    config.CLASSES = ["Soup", "Egg/fried", "Bread"]
    train_distributed.main()


@pytest.mark.parametrize("split", ["validation", "evaluation"])
def test_a_class_that_one_split_lacks_stops_the_run(tinyRun, split):
    for path in Path("dataset", split, "Egg").iterdir():
        path.unlink()
    Path("dataset", split, "Egg").rmdir()
    with pytest.raises(UserError, match=f"dataset.{split}: .*Egg"):
        train_distributed.main()


def test_batch_and_learning_rate_grow_with_the_gpus(tinyRun, monkeypatch, capsys):
    seen = []
    train_one_epoch = train_distributed.train_one_epoch

    def train_and_note(model, loader, lossFunc, opt, scaler):
        isSearching = torch.backends.cudnn.benchmark
        seen.append((type(model), loader.batch_size, opt.param_groups[0]["lr"], isSearching))
        return train_one_epoch(model, loader, lossFunc, opt, scaler)

    flags = "--epochs 1 --num-workers 0 --local-batch-size 4 --no-pretrained"
    monkeypatch.setattr("sys.argv", ["train_distributed.py", *flags.split()])
    monkeypatch.setattr(train_distributed, "train_one_epoch", train_and_note)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    for numGPU in (0, 1, 2):
        monkeypatch.setattr(devices, "count_gpus", lambda count=numGPU: count)
        train_distributed.main()
        out = capsys.readouterr().out
        assert f"[INFO] number of GPUs found: {numGPU}...\n" in out
        assert f"[INFO] using a batch size of {4 * max(numGPU, 1)}...\n" in out
        # the plain model's keys, DataParallel or not
        keys = set(checkpoint.load_state(config.MODEL_PATH))
        assert keys == set(FoodClassifier(TinyNet(), 3).state_dict())
    # cuDNN searches for its fastest algorithms, but in the new threads of nn.DataParallel
    assert seen == [
        (FoodClassifier, 4, config.LR, True),
        (FoodClassifier, 4, config.LR, True),
        (nn.DataParallel, 8, config.LR * 2, False),
    ]


def test_loss_and_optimizer_are_those_of_the_tutorial(tinyRun, monkeypatch):
    seen = []
    monkeypatch.setattr(
        train_distributed, "train_one_epoch", lambda *args: seen.append(args) or (1.0, 1.0)
    )
    monkeypatch.setattr("sys.argv", [*sys.argv, "--epochs", "1"])
    with pytest.warns(UserWarning, match="lr_scheduler.step"):
        train_distributed.main()
    ((_, _, lossFunc, opt, scaler),) = seen
    assert type(lossFunc) is nn.CrossEntropyLoss
    assert (lossFunc.label_smoothing, lossFunc.weight, lossFunc.reduction) == (0, None, "mean")
    assert type(opt) is torch.optim.Adam
    (group,) = opt.param_groups
    expected = torch.optim.Adam([torch.zeros(1)], lr=config.LR, fused=True).param_groups[0]
    for name in expected.keys() - {"params"}:
        assert group[name] == expected[name], name
    assert not scaler.is_enabled()


class Spy:
    """A tensor whose way to the device is noted in moves."""

    moves = []

    def __init__(self, tensor):
        self.tensor = tensor

    def __len__(self):
        return len(self.tensor)

    def to(self, device, **options):
        self.moves.append((device, options))
        return self.tensor


@pytest.mark.parametrize("isPinned", [True, False])
def test_pinned_images_go_to_the_device_without_waiting(monkeypatch, isPinned):
    class Loader:
        pin_memory = isPinned
        sampler = range(2)

        def __iter__(self):
            yield Spy(torch.zeros(2, 3, 8, 8)), Spy(torch.tensor([0, 1]))

    config.DEVICE = torch.device("cpu")
    Spy.moves.clear()
    model = FoodClassifier(TinyNet(), 3)
    modes = []
    model.register_forward_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    train_distributed.train_one_epoch(model, Loader(), nn.CrossEntropyLoss(), opt, scaler)
    train_distributed.evaluate(model, Loader(), nn.CrossEntropyLoss())
    assert Spy.moves == [(config.DEVICE, {"non_blocking": isPinned})] * 4
    # autograd is off where it is not needed
    distributed_inference.predict(model, torch.zeros(2, 3, 8, 8))
    assert modes == [False, True, True]


def test_weights_depend_on_the_seed_alone(tinyRun, monkeypatch):
    weights = []
    for before, seed in ((1, "42"), (2, "42"), (2, "43")):
        # whatever was drawn before the script began
        torch.manual_seed(before)
        argv = [*sys.argv[:1], *"--epochs 1 --num-workers 0 --no-pretrained --seed".split(), seed]
        monkeypatch.setattr("sys.argv", argv)
        train_distributed.main()
        weights.append(checkpoint.load_state(config.MODEL_PATH)["classifier.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_training_learns(tinyRun, monkeypatch):
    draw_class_folders(Path("dataset"), counts=(12, 4, 8))
    flags = "--image-size 64 --epochs 12 --num-workers 0 --local-batch-size 4 --lr 0.01"
    monkeypatch.setattr("sys.argv", ["train_distributed.py", *flags.split(), "--no-pretrained"])
    train_distributed.main()
    report = Path(config.REPORT_PATH).read_text()
    # three colours; chance is 0.33
    assert float(re.search(r"accuracy +([01]\.\d\d)", report)[1]) > 0.6


def keep_loudly():
    """Say where memory is kept."""
    devices.keep_memory = lambda: print("memory is kept")


def test_memory_is_kept_in_training_alone():
    draw_class_folders(Path("dataset"))
    flags = "--image-size 64 --epochs 1 --num-workers 0 --no-pretrained".split()
    run = run_forked("train_distributed.py", *flags, before=keep_loudly)
    assert run.stdout.count("memory is kept\n") == 1
    run = run_forked("distributed_inference.py", before=keep_loudly)
    assert run.returncode == 0, run.stderr
    assert "memory is kept" not in run.stdout


def test_learning_rate_falls_to_a_tenth_every_ten_epochs(tinyRun, monkeypatch):
    rates = []
    train_one_epoch = train_distributed.train_one_epoch

    def train_and_note(model, loader, lossFunc, opt, scaler):
        rates.append(opt.param_groups[0]["lr"])
        return train_one_epoch(model, loader, lossFunc, opt, scaler)

    monkeypatch.setattr(train_distributed, "train_one_epoch", train_and_note)
    monkeypatch.setattr("sys.argv", ["train_distributed.py", "--epochs", "21", "--no-pretrained"])
    train_distributed.main()
    assert rates == pytest.approx([1e-4] * 10 + [1e-5] * 10 + [1e-6])


def test_weights_are_on_disk_before_report_and_plot_are_tried(tinyRun, monkeypatch):
    def fail(*args):
        assert Path(config.MODEL_PATH).exists()
        raise ZeroDivisionError

    for name in ("save_report", "write_table", "save_history"):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(reporting, name, fail)
            train_distributed.main()
        checkpoint.load_state(config.MODEL_PATH)
        Path(config.MODEL_PATH).unlink()
