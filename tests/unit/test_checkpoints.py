"""What a resumed run takes from its checkpoint, and what it says of changed images."""

import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers import (
    CLASSES,
    TinyNet,
    assert_same,
    call,
    draw_class_folders,
    draw_image,
    load,
    read_tree,
)
from torch import optim
from torchvision import transforms
from torchvision.datasets import ImageFolder

from pyimagesearch import config
from pyimagesearch.food_classifier import FoodClassifier
from pyimagesearch.support import checkpoints, runs
from pyimagesearch.support.checkpoints import (
    compare_images,
    describe_transform,
    read_checkpoint,
    restore_run,
    save_checkpoint,
)
from pyimagesearch.support.errors import UserError


@pytest.fixture
def datasets():
    """Return the three splits of drawn images."""
    config.CLASSES = list(CLASSES)
    draw_class_folders(counts=(2, 1, 1))
    return [ImageFolder(path) for path in (config.TRAIN, config.VAL, config.TEST)]


def start_run(resume):
    """Start or resume a run, as a process of its own; return it."""
    found = []
    args = Namespace(resume=resume, evaluate=False, weights=None)
    call(lambda argv: found.append(runs.start_run(args)))
    return found[0]


def make_parts():
    """Return an untrained network and the rest of what has a state."""
    model = FoodClassifier(TinyNet(), 3).to(config.DEVICE)
    opt = optim.Adam(model.parameters(), lr=0.01, fused=True)
    # so high that the first step overflows and is skipped
    options = {"init_scale": 2.0**127, "backoff_factor": 2.0**-60, "growth_interval": 2}
    scaler = torch.amp.GradScaler(config.DEVICE.type, **options)
    scheduler = optim.lr_scheduler.StepLR(opt, step_size=2, gamma=0.1)
    return {"model": model, "opt": opt, "scaler": scaler, "lrScheduler": scheduler}


def train_step(parts, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 3, 16, 16, generator=generator).to(config.DEVICE)
    loss = parts["model"](x).logsumexp(1).sum() * 100
    parts["scaler"].scale(loss).backward()
    parts["scaler"].step(parts["opt"])
    parts["scaler"].update()
    parts["opt"].zero_grad()
    parts["lrScheduler"].step()


@pytest.mark.parametrize("case", ["as saved", "on a GPU", "contiguous"])
def test_a_restored_run_takes_the_very_steps_that_the_first_would_have_taken(
    datasets, monkeypatch, case
):
    config.DEVICE = torch.device("cpu")
    parts = make_parts()
    run = start_run(resume=False)
    H = {"val_acc": []}
    assert restore_run(run, parts, H, datasets) == 0
    for seed in range(3):
        train_step(parts, seed)
    assert parts["scaler"].get_scale() == 2.0**68
    with monkeypatch.context() as patch:
        if case == "on a GPU":
            patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        save_checkpoint(run, parts, {"val_acc": [0.5]}, 3)
    for seed in range(3, 6):
        train_step(parts, seed)
    if case == "contiguous":
        # as Apple's GPU saves the moments of Adam, though convolutions have the channels last
        state = load(config.CHECKPOINT_PATH)
        for values in state["opt"]["state"].values():
            for name, tensor in values.items():
                values[name] = tensor.contiguous()
        torch.save(state, config.CHECKPOINT_PATH)
    resumed = make_parts()
    run = start_run(resume=True)
    assert restore_run(run, resumed, H, datasets) == 3
    assert H == {"val_acc": [0.5]}
    for seed in range(3, 6):
        train_step(resumed, seed)
    for name, part in parts.items():
        assert_same(dict(resumed[name].state_dict()), dict(part.state_dict()))


def test_a_run_that_was_killed_in_its_first_epoch_begins_again(datasets, capsys):
    start_run(resume=False)
    run = start_run(resume=True)
    assert f"no {config.CHECKPOINT_PATH} yet" in capsys.readouterr().out
    H = {"val_acc": []}
    assert restore_run(run, make_parts(), H, datasets) == 0
    assert H == {"val_acc": []}


def test_a_checkpoint_is_all_that_is_saved_for_a_resumed_run(datasets):
    run = start_run(resume=False)
    restore_run(run, parts := make_parts(), {}, datasets)
    save_checkpoint(run, parts, {"val_acc": [0.5]}, 1)
    # the weights are the script's to save
    assert set(read_tree()) == {"settings.json", "checkpoint.pth", "history.csv"}
    state = load(config.CHECKPOINT_PATH)
    names = {"started", "epoch", "H", "images", "transform"}
    assert set(state) == set(parts) | names


def test_weights_without_a_checkpoint_are_refused_and_kept(capsys):
    Path("output").mkdir()
    weights = Path(config.MODEL_PATH)
    weights.write_bytes(b"weights")
    with pytest.raises(UserError, match="no .*checkpoint.pth to resume from") as caught:
        read_checkpoint("2000-01-01 00:00:00")
    for text in (config.MODEL_PATH, "move the checkpoint back", "without --resume"):
        assert text in str(caught.value)
    assert weights.read_bytes() == b"weights"
    weights.unlink()
    assert read_checkpoint("2000-01-01 00:00:00") is None
    assert f"no {config.CHECKPOINT_PATH} yet" in capsys.readouterr().out


class OwnTransform:
    """A transform of the user's own, whose text has the address of the object."""

    def __call__(self, image):
        return image


def test_a_transform_is_a_line_of_text_that_is_the_same_in_each_process(datasets):
    texts = set()
    kept = []
    for _ in range(2):
        steps = [transforms.RandomHorizontalFlip(0.25), OwnTransform()]
        datasets[0].transform = transforms.Compose(steps)
        kept.append(datasets[0].transform)
        texts.add(describe_transform(datasets[0]))
    (text,) = texts
    assert text.startswith("Compose( RandomHorizontalFlip(p=0.25) <")
    assert "OwnTransform object>" in text
    assert "\n" not in text


def test_a_resumed_run_whose_training_transform_changed_says_so_with_that_of_before(
    datasets, capsys
):
    datasets[0].transform = transforms.RandomRotation(90)
    run = start_run(resume=False)
    restore_run(run, parts := make_parts(), {}, datasets)
    before = run.transform
    assert "RandomRotation" in before
    save_checkpoint(run, parts, {}, 1)
    assert load(config.CHECKPOINT_PATH)["transform"] == before

    datasets[0].transform = transforms.RandomRotation(90)
    # that of evaluation is no matter
    datasets[2].transform = transforms.ToTensor()
    restore_run(start_run(resume=True), parts, {}, datasets)
    assert "transform" not in capsys.readouterr().out

    datasets[0].transform = transforms.RandomHorizontalFlip()
    run = start_run(resume=True)
    restore_run(run, parts, {}, datasets)
    assert f"the training transform changed: {before} then..." in capsys.readouterr().out
    # the next checkpoint has the new one
    save_checkpoint(run, parts, {}, 2)
    assert "RandomHorizontalFlip" in load(config.CHECKPOINT_PATH)["transform"]


def test_a_checkpoint_of_another_run_is_refused(datasets):
    run = start_run(resume=False)
    restore_run(run, parts := make_parts(), {}, datasets)
    save_checkpoint(run, parts, {}, 1)
    assert read_checkpoint(run.record["started"])["epoch"] == 1
    with pytest.raises(UserError, match="another run than .*settings.json") as caught:
        read_checkpoint("2000-01-01 00:00:00")
    assert "--resume" in str(caught.value)
    # one of an earlier version says nothing of its run
    torch.save({"epoch": 1}, config.CHECKPOINT_PATH)
    with pytest.raises(UserError, match="another run"):
        read_checkpoint(run.record["started"])


def test_a_checkpoint_of_another_version_is_one_line(datasets):
    run = start_run(resume=False)
    restore_run(run, parts := make_parts(), {"val_acc": []}, datasets)
    save_checkpoint(run, parts, {"val_acc": [0.5]}, 1)
    run = start_run(resume=True)
    with pytest.raises(UserError, match="checkpoint.pth is of another version.*--resume"):
        restore_run(run, parts, {"val_acc": [], "seconds": []}, datasets)


def test_resuming_leaves_config_as_the_run_had_it(datasets):
    run = start_run(resume=False)
    restore_run(run, parts := make_parts(), {}, datasets)
    save_checkpoint(run, parts, {}, 1)
    run = start_run(resume=True)
    before = dict(vars(config))
    restore_run(run, parts, {}, datasets)
    assert vars(config) == before


def list_training_images(folder=None):
    """Return the images of a run whose training images are in a folder, TRAIN if none is given."""
    ds = ImageFolder(folder or config.TRAIN)
    run = Namespace(checkpoint=None, start=None)
    restore_run(run, {}, {}, (ds, ds, ds))
    return run.images["training"]


def test_a_changed_data_set_is_noticed_by_path_size_and_label(datasets):
    (egg, soup) = (Path(f"dataset/training/{name}/0.jpg") for name in ("Egg", "Soup"))
    seen = [list_training_images()]
    # the same in another place is not another
    shutil.copytree(config.TRAIN, "elsewhere")
    assert list_training_images("elsewhere") == seen[0]

    def swap_labels():
        egg.rename("egg.jpg")
        soup.rename(egg)
        Path("egg.jpg").rename(soup)

    changes = [
        lambda: draw_image(egg.with_name("9.jpg"), 0),
        lambda: egg.write_bytes(egg.read_bytes() + b" "),
        swap_labels,
        lambda: egg.rename(egg.with_name("7.jpg")),
    ]
    for change in changes:
        change()
        images = list_training_images()
        assert images not in seen
        seen.append(images)


IMAGES = {
    "training": [("Egg/a.jpg", 10), ("Egg/b.jpg", 20), ("Soup/c.jpg", 30)],
    "validation": [("Egg/d.jpg", 40)],
    "test": [("Egg/e.jpg", 50)],
}


def test_images_that_are_the_same_are_not_spoken_of(capsys):
    compare_images(IMAGES, dict(IMAGES))
    assert capsys.readouterr().out == ""


def test_a_line_for_each_split_says_how_many_images_changed(capsys):
    now = {
        "training": [("Egg/a.jpg", 10), ("Egg/b.jpg", 21), ("Soup/f.jpg", 60)],
        "validation": IMAGES["validation"],
        "test": [],
    }
    compare_images(IMAGES, now)
    (training, test) = capsys.readouterr().out.splitlines()
    assert "training images changed: 2 are gone, 2 are new, 3 in all" in training
    assert "test images changed: 1 are gone, 0 are new, 0 in all" in test


def test_new_test_images_that_the_run_was_trained_on_are_counted(capsys):
    now = {
        # two were moved, one of them to another class
        "training": [("Egg/b.jpg", 20)],
        "validation": IMAGES["validation"],
        "test": [("Egg/a.jpg", 10), ("Egg/c.jpg", 30), ("Egg/e.jpg", 50), ("Egg/new.jpg", 20)],
    }
    compare_images(IMAGES, now)
    line = capsys.readouterr().out.splitlines()[-1]
    assert "trained on: 2, such as Egg/a.jpg;" in line


def test_new_test_images_of_the_names_of_training_images_are_no_training_images(capsys):
    now = IMAGES | {"test": [*IMAGES["test"], ("Egg/a.jpg", 11)]}
    compare_images(IMAGES, now)
    assert "trained on" not in capsys.readouterr().out


def test_the_splits_of_a_run_are_those_that_it_compares():
    assert list(IMAGES) == list(checkpoints.SPLITS)
