"""What a resumed run takes from its checkpoint, and what it refuses."""

import shutil
from argparse import Namespace
from pathlib import Path

from pyimagesearch import checkpoint, config, devices
from pyimagesearch.cli import UserError
from pyimagesearch.food_classifier import FoodClassifier

import pytest
import torch
from helpers import CLASSES, TinyNet, assert_same, draw_class_folders, draw_image, load
from torch import optim
from torchvision.datasets import ImageFolder

# of 3 devices, as save_checkpoint() writes it
SAVED = {"IMAGE_SIZE": 64, "SEED": 7, "PRETRAINED": False, "MEAN": [0.4] * 3, "STD": [0.2] * 3}
SAVED |= {"EPOCHS": 9, "LR": 0.003, "LOCAL_BATCH_SIZE": 4, "CLASSES": CLASSES}
SAVED |= {"number of devices": 3}


@pytest.fixture
def datasets():
    """Return the three splits of drawn images."""
    config.CLASSES = list(CLASSES)
    draw_class_folders(counts=(2, 1, 1))
    return [ImageFolder(path) for path in (config.TRAIN, config.VAL, config.TEST)]


def make_stateful():
    """Return an untrained network and the rest of what has a state."""
    model = FoodClassifier(TinyNet(), 3).to(config.DEVICE)
    opt = optim.Adam(model.parameters(), lr=0.01, fused=True)
    # so high that the first step overflows and is skipped
    options = {"init_scale": 2.0**127, "backoff_factor": 2.0**-60, "growth_interval": 2}
    scaler = torch.amp.GradScaler(config.DEVICE.type, **options)
    scheduler = optim.lr_scheduler.StepLR(opt, step_size=2, gamma=0.1)
    return {"model": model, "opt": opt, "scaler": scaler, "lrScheduler": scheduler}


def train_step(stateful, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 3, 16, 16, generator=generator).to(config.DEVICE)
    loss = stateful["model"](x).logsumexp(1).sum() * 100
    stateful["scaler"].scale(loss).backward()
    stateful["scaler"].step(stateful["opt"])
    stateful["scaler"].update()
    stateful["opt"].zero_grad()
    stateful["lrScheduler"].step()


@pytest.mark.parametrize("case", ["as saved", "on a GPU", "contiguous"])
def test_a_restored_run_takes_the_very_steps_that_the_first_would_have_taken(
    datasets, monkeypatch, case
):
    config.DEVICE = torch.device("cpu")
    (stateful, run) = (make_stateful(), checkpoint.start_run(Namespace(resume=False)))
    assert checkpoint.restore_run(run, stateful, H := {"val_acc": []}, datasets) == 0
    for seed in range(3):
        train_step(stateful, seed)
    assert stateful["scaler"].get_scale() == 2.0**68
    with monkeypatch.context() as patch:
        if case == "on a GPU":
            patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        checkpoint.save_checkpoint(run, stateful, 3, {"val_acc": [0.5]}, CLASSES)
    for seed in range(3, 6):
        train_step(stateful, seed)
    if case == "contiguous":
        # as Apple's GPU saves the moments of Adam, though convolutions have the channels last
        state = load(config.CHECKPOINT_PATH)
        for values in state["opt"]["state"].values():
            values.update({name: tensor.contiguous() for name, tensor in values.items()})
        torch.save(state, config.CHECKPOINT_PATH)
    resumed = make_stateful()
    run = checkpoint.start_run(Namespace(resume=True))
    assert checkpoint.restore_run(run, resumed, H, datasets) == 3
    assert H == {"val_acc": [0.5]}
    for seed in range(3, 6):
        train_step(resumed, seed)
    for name, part in stateful.items():
        assert_same(dict(resumed[name].state_dict()), dict(part.state_dict()))


def test_one_line_names_every_difference_and_where_each_value_is():
    first = ("on first", {"LR": 0.1, "SEED": 1, "EPOCHS": 3})
    others = [("on second", first[1] | {"LR": 0.2}), ("on third", first[1] | {"EPOCHS": 4})]
    with pytest.raises(UserError) as caught:
        checkpoint.compare_settings([first, first, *others], "they must match")
    assert str(caught.value) == (
        "LR is 0.1 on first, on third and 0.2 on second; "
        "EPOCHS is 3 on first, on second and 4 on third; they must match"
    )
    checkpoint.compare_settings([first, first], "they must match")


def test_a_changed_data_set_is_noticed_by_path_size_and_label(datasets):
    (egg, soup) = (Path(f"dataset/training/{name}/0.jpg") for name in ("Egg", "Soup"))
    seen = [checkpoint.describe_images(datasets[0])]
    # the same in another place is not another
    shutil.copytree(config.TRAIN, "elsewhere")
    assert checkpoint.describe_images(ImageFolder("elsewhere")) == seen[0]
    for change in (
        lambda: draw_image(egg.with_name("9.jpg"), 0),
        lambda: egg.write_bytes(egg.read_bytes() + b" "),
        # the labels of two
        lambda: (egg.rename("egg.jpg"), soup.rename(egg), Path("egg.jpg").rename(soup)),
        lambda: egg.rename(egg.with_name("7.jpg")),
    ):
        change()
        seen.append(checkpoint.describe_images(ImageFolder(config.TRAIN)))
        assert seen[-1] not in seen[:-1]


@pytest.mark.parametrize(("numDevices", "perDevice"), [(1, 12), (3, 4), (6, 2)])
def test_a_run_goes_on_with_the_same_batch_on_other_devices(monkeypatch, numDevices, perDevice):
    monkeypatch.setattr(devices, "count_devices", lambda: numDevices)
    (config.CLASSES, config.LOCAL_BATCH_SIZE) = (list(CLASSES), 99)
    checkpoint.take_settings(SAVED, Namespace())
    found = {name: getattr(config, name) for name in SAVED if name in checkpoint.SETTINGS}
    assert found == {name: SAVED[name] for name in found} | {"LOCAL_BATCH_SIZE": perDevice}


def test_more_epochs_may_be_asked_for_but_no_other_setting_and_no_uneven_batch(monkeypatch):
    config.CLASSES = ["Soup", "Egg", "Bread"]
    flags = Namespace(EPOCHS=20, SEED=7)
    checkpoint.take_settings(SAVED, flags)
    assert config.EPOCHS == 20
    (flags.SEED, flags.LR, config.CLASSES) = (8, 0.1, ["Egg", "Pie"])
    with pytest.raises(UserError) as caught:
        checkpoint.take_settings(SAVED, flags)
    for part in ("SEED is 7 in output", " and 8 in", "LR is 0.003 in", " and 0.1 in", "'Pie'"):
        assert part in str(caught.value)
    assert "EPOCHS" not in str(caught.value)
    monkeypatch.setattr(devices, "count_devices", lambda: 5)
    with pytest.raises(UserError, match="on 5 devices; resume on 3"):
        checkpoint.take_settings(SAVED, Namespace())


@pytest.mark.parametrize(
    "names", ["SLURM_ NTASKS PROCID", "PMI_ SIZE RANK", "OMPI_COMM_WORLD_ SIZE RANK"]
)
def test_tasks_that_would_each_train_alone_are_refused(monkeypatch, names):
    (system, *names) = names.split()
    (numTasks, task) = (system + name for name in names)
    args = Namespace(resume=False)
    monkeypatch.setenv(numTasks, "2")
    # a mere allocation: a shell in it has no number
    checkpoint.start_run(args)
    monkeypatch.setenv(task, "1")
    with pytest.raises(UserError, match="2 tasks .*torchrun"):
        checkpoint.start_run(args)
    with monkeypatch.context() as patch:
        patch.setenv("TORCHELASTIC_RUN_ID", "none")
        checkpoint.start_run(args)
    monkeypatch.setenv(numTasks, "1")
    checkpoint.start_run(args)
