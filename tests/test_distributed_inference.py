import os
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import distributed_inference
from pyimagesearch import (
    checkpoint,
    config,
    create_dataloaders,
    devices,
    food_classifier,
    images,
    reporting,
)
from pyimagesearch.cli import UserError
from pyimagesearch.food_classifier import FoodClassifier

import numpy as np
import pytest
import torch
from conftest import ORIGINAL_CONFIG, TinyNet, draw_class_folders, draw_image
from matplotlib.axes import Axes
from PIL import Image


@pytest.fixture
def shown(monkeypatch):
    """Set up a trained network that always says Egg; collect the pictures that are plotted."""
    monkeypatch.setattr(food_classifier, "densenet121", lambda weights: TinyNet())
    model = FoodClassifier(TinyNet(), 3)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 3.0, 1.0]))
    checkpoint.save_state(model.state_dict(), config.MODEL_PATH)
    (config.CLASSES, config.IMAGE_SIZE) = (["Soup", "Egg", "Bread"], 64)
    plots = []
    plot_pictures = reporting.plot_pictures

    def plot_and_keep(path, imagePaths, titles, hits=None):
        assert path == config.RESULTS_PATH
        plots.append((imagePaths, titles, hits))
        # many take seconds; test_reporting.py looks at them
        if len(imagePaths) < 10:
            plot_pictures(path, imagePaths, titles, hits)

    monkeypatch.setattr(reporting, "plot_pictures", plot_and_keep)
    return plots


def infer(monkeypatch, *flags):
    monkeypatch.setattr("sys.argv", ["distributed_inference.py", *flags])
    distributed_inference.main()


@pytest.mark.parametrize(("numGPU", "count"), [(0, 4), (1, 4), (2, 8)])
def test_shows_one_batch_with_truth_and_prediction(shown, monkeypatch, capsys, numGPU, count):
    monkeypatch.setattr(devices, "count_gpus", lambda: numGPU)
    draw_class_folders(Path("dataset"))
    infer(monkeypatch)
    assert capsys.readouterr().out.startswith(
        f"[INFO] number of GPUs found: {numGPU}...\n[INFO] using a batch size of {count}...\n"
    )
    ((paths, titles, hits),) = shown
    assert len(set(paths)) == count
    truths = [Path(path).parent.name for path in paths]
    assert 1 < len(set(truths)) <= 3
    # of the photograph that stands under it
    assert titles == [
        f"Ground Truth: {truth},\nPredicted: Egg 0.84\n{os.path.basename(path)}"
        for truth, path in zip(truths, paths, strict=True)
    ]
    assert hits == [truth == "Egg" for truth in truths]
    assert Path(config.RESULTS_PATH).exists()


def test_fewer_test_images_than_a_batch_are_all_shown(shown, monkeypatch):
    draw_class_folders(Path("dataset"), counts=(1, 1, 1))
    infer(monkeypatch, "--pred-batch-size", "32")
    ((_, titles, _),) = shown
    assert len(titles) == 3


def test_seed_chooses_the_batch(shown, monkeypatch):
    draw_class_folders(Path("dataset"), counts=(1, 1, 12))
    for seed in ("1", "1", "2"):
        infer(monkeypatch, "--seed", seed)
    (first, again, other) = (paths for paths, *_ in shown)
    assert first == again
    assert first != other


def test_files_and_folders_are_classified_with_no_data_set_there(shown, monkeypatch, capsys):
    for name in ("lunch.jpg", "week/tuesday/1.png", "week/monday.jpg"):
        draw_image(Path(name), 3)
    for number in range(33):
        draw_image(Path(f"month/{number:02}.jpg"), number)
    Path("week/notes.txt").write_text("not a picture")
    infer(monkeypatch, "week", "lunch.jpg", "month")
    lines = capsys.readouterr().out.splitlines()
    paths = ["week/monday.jpg", "week/tuesday/1.png", "lunch.jpg"]
    paths += [f"month/{number:02}.jpg" for number in range(33)]
    answers = [f"{os.path.join(*p.split('/'))}: Egg 0.84, Soup 0.11, Bread 0.04" for p in paths]
    assert [line for line in lines if ": Egg" in line] == answers
    ((drawn, titles, hits),) = shown
    guesses = "Egg 0.84\nSoup 0.11\nBread 0.04"
    # chosen evenly from all folders
    assert len(set(drawn)) == 32
    assert drawn[0] == os.path.join("week", "monday.jpg")
    assert sum(path.startswith("month") for path in drawn) < len(drawn)
    # the others have a title and no room
    assert len(titles) == 36
    titled = titles[: len(drawn)]
    assert titled == [f"{os.path.basename(path)}\n{guesses}" for path in drawn]
    assert hits is None


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_the_photograph_that_is_shown_is_the_one_whose_prediction_is_told(shown, monkeypatch, seed):
    draw_class_folders(Path("dataset"), counts=(1, 1, 4))
    seen = []

    def predict_and_keep(model, x):
        # another answer for each, told by the picture alone
        seen.append(x)
        red = x.mean((1, 2, 3))
        return torch.stack([red.sigmoid() / 2, red.sigmoid(), red.sigmoid() / 3], 1)

    monkeypatch.setattr(distributed_inference, "predict", predict_and_keep)
    infer(monkeypatch, "--seed", seed, "--pred-batch-size", "7")
    ((paths, titles, hits),) = shown
    (x,) = seen
    assert len(x) == len(paths) == len(titles) == len(hits) == 7
    transform = create_dataloaders.test_transform()
    for path, title, tensor, hit in zip(paths, titles, x, hits, strict=True):
        expected = transform(images.load_image(path))
        assert torch.equal(tensor, expected)
        name = Path(path).parent.name
        lines = title.split("\n")
        assert lines[0] == f"Ground Truth: {name},"
        assert lines[1] == f"Predicted: Egg {expected.mean().sigmoid():.2f}"
        assert lines[2] == os.path.basename(path)
        assert hit == (name == "Egg")


def save_weights(classes, bias=1):
    """Save the weights of a network that always says the second class, or that of another index,
    trained at 48 px."""
    config.IMAGE_SIZE = 48
    (config.MEAN, config.STD) = ([0.5] * 3, [0.25] * 3)
    model = FoodClassifier(TinyNet(), len(classes))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.arange(len(classes)) == bias)
    checkpoint.save_weights(model, classes)
    for name in ("IMAGE_SIZE", "MEAN", "STD"):
        setattr(config, name, ORIGINAL_CONFIG[name])


def test_inference_obeys_the_weights_whatever_config_says_by_now(shown, monkeypatch, capsys):
    # sorted, these come in another order than CLASSES of config.py by now
    save_weights(["Pizza", "bread", "egg"])
    config.CLASSES = ["Bread", "Egg", "Pizza"]
    draw_image(Path("lunch.jpg"), 3)
    seen = []
    predict = distributed_inference.predict
    monkeypatch.setattr(
        distributed_inference, "predict", lambda model, x: seen.append(x) or predict(model, x)
    )
    infer(monkeypatch, "lunch.jpg")
    assert "lunch.jpg: bread 0." in capsys.readouterr().out
    (x,) = seen
    assert x.shape == (1, 3, 48, 48)
    image = images.load_image("lunch.jpg").resize((48, 48), Image.Resampling.BILINEAR)
    expected = (np.asarray(image).transpose(2, 0, 1) / 255 - 0.5) / 0.25
    assert np.abs(x[0].numpy() - expected).max() < 0.02


def test_a_test_set_of_other_classes_than_the_weights_is_refused(shown, monkeypatch):
    save_weights(["Egg", "Pizza", "Rice", "Soup"])
    draw_class_folders(Path("dataset"))
    line = (
        r"^output.food_classifier.pth: the weights were trained on 4 classes: Egg, Pizza, Rice, "
        r"Soup; dataset.evaluation has 3 classes: Bread, Egg, Soup; "
    )
    with pytest.raises(UserError, match=line):
        infer(monkeypatch)


def test_weights_that_know_nothing_take_what_config_says(shown, monkeypatch, capsys):
    # the tutorial's own, and a plain dict of tensors
    state = checkpoint.load_state(config.MODEL_PATH)
    torch.save(dict(state.items()), config.MODEL_PATH)
    draw_image(Path("lunch.jpg"), 3)
    infer(monkeypatch, "lunch.jpg")
    # CLASSES as ImageFolder sorts them: Bread, Egg, Soup
    assert "lunch.jpg: Egg 0.84, Soup 0.11, Bread 0.04" in capsys.readouterr().out


def test_an_unreadable_photograph_is_named_and_the_others_are_classified(
    shown, monkeypatch, capsys
):
    for name in ("a.jpg", "c.webp", "._d.jpg"):
        draw_image(Path("holiday", name), 3)
    for name in ("b.jpg", "notes.txt", "e.HEIC"):
        Path("holiday", name).write_text("no image")
    with pytest.raises(UserError, match="^photographs left out: 1 of 3; holiday.b.jpg: cannot"):
        infer(monkeypatch, "holiday", "--pred-batch-size", "1")
    out = capsys.readouterr().out.replace(os.sep, "/")
    assert re.findall(r"^holiday/(\w.\w+): Egg 0.84", out, re.M) == ["a.jpg", "c.webp"]
    assert "[INFO] left out: holiday/b.jpg: cannot be read as an image" in out
    assert "[INFO] non-image files in holiday: 1 ._*, 1 .txt..." in out
    assert re.search(r"^\[INFO\] .*in holiday.*: 1 \.heic.* convert .*to JPEG", out, re.M)
    ((paths, _, _),) = shown
    assert [Path(path).name for path in paths] == ["a.jpg", "c.webp"]


def test_nothing_is_shown_where_no_photograph_can_be_read(shown, monkeypatch):
    Path("a.jpg").write_text("no image")
    with pytest.raises(UserError, match="^photographs left out: 1 of 1; a.jpg: cannot"):
        infer(monkeypatch, "a.jpg")
    assert not shown
    assert not os.path.exists(config.RESULTS_PATH)


def test_photographs_are_shown_in_their_own_proportions(shown, monkeypatch):
    draw_image(Path("panorama.jpg"), 3, size=(1200, 300))
    draw_image(Path("portrait.jpg"), 3, size=(30, 40))
    pictures = []
    imshow = Axes.imshow

    def show_and_keep(axes, picture, **options):
        pictures.append(np.asarray(picture))
        return imshow(axes, picture, **options)

    monkeypatch.setattr(Axes, "imshow", show_and_keep)
    infer(monkeypatch, "panorama.jpg", "portrait.jpg")
    assert [picture.shape for picture in pictures] == [(128, 512, 3), (40, 30, 3)]


def test_pictures_come_from_all_folders(shown, monkeypatch):
    for folder, count in (("april", 30), ("may", 20), ("june", 1)):
        for number in range(count):
            draw_image(Path(folder, f"{folder} {number:02}.jpg"), 3)
    infer(monkeypatch, "april", "may", "june", "--pred-batch-size", "50")
    ((paths, titles, _),) = shown
    counts = Counter(Path(path).parent.name for path in paths)
    assert counts["april"] > counts["may"] > 5
    assert len(titles) >= len(paths) == 32


@pytest.mark.parametrize("count", [20, 40])
def test_photographs_of_two_folders_are_shown_from_both(shown, monkeypatch, count):
    for number in range(count):
        draw_image(Path("first" if number < count // 2 else "second", f"{number}.jpg"), 3)
    infer(monkeypatch, "first", "second", "--pred-batch-size", "40")
    ((paths, _, _),) = shown
    counts = Counter(Path(path).parent.name for path in paths)
    assert len(set(paths)) == sum(counts.values())
    assert abs(counts["first"] - counts["second"]) <= 1


def test_two_photographs_of_one_name_are_told_by_their_folders(shown, monkeypatch):
    for path in ("rome/1.jpg", "oslo/1.jpg", "oslo/2.jpg"):
        draw_image(Path(path), 3)
    infer(monkeypatch, "rome", "oslo")
    ((_, titles, _),) = shown
    names = [title.split("\n")[0].replace(os.sep, "/") for title in titles]
    assert names == ["rome/1.jpg", "oslo/1.jpg", "2.jpg"]


@pytest.mark.parametrize("paths", [["a.jpg", "week"], []])
def test_weights_may_lie_anywhere(shown, monkeypatch, capsys, paths):
    save_weights(["Bread", "Egg", "Soup"], bias=2)
    os.rename(config.MODEL_PATH, "best of march.pth")
    draw_class_folders(Path("dataset"))
    draw_image(Path("a.jpg"), 3)
    draw_image(Path("week/b.jpg"), 3)
    infer(monkeypatch, *paths, "--weights", "best of march.pth")
    out = capsys.readouterr().out
    ((_, titles, _),) = shown
    if paths:
        assert out.count(": Soup 0.") == 2
    else:
        assert all("Predicted: Soup 0." in title for title in titles)
    assert not os.path.exists(config.MODEL_PATH)


def test_weights_that_are_not_there_are_named_with_the_last_ones_of_earlier_runs(
    shown, monkeypatch
):
    draw_image(Path("a.jpg"), 3)
    with pytest.raises(UserError, match="^mine.pth: No such file"):
        infer(monkeypatch, "a.jpg", "--weights", "mine.pth")
    # the name alone does not tell which is the newest
    for age, name in ((30, "run-2026-01-03-120000"), (10, "run-2026-01-01-120000")):
        os.makedirs(f"output/{name}")
        path = shutil.copy(config.MODEL_PATH, f"output/{name}")
        os.utime(path, (time.time() - age,) * 2)
    # a run that has none
    os.makedirs("output/run-2026-01-09-120000")
    os.remove(config.MODEL_PATH)
    with pytest.raises(UserError) as caught:
        infer(monkeypatch, "a.jpg")
    newest = os.path.join("output", "run-2026-01-01-120000", "food_classifier.pth")
    assert str(caught.value).startswith(f"{config.MODEL_PATH}: No such file")
    assert newest in str(caught.value)
    assert "run-2026-01-03" not in str(caught.value)
    # and the path that is named is one to give
    infer(monkeypatch, "a.jpg", "--weights", newest)
    assert len(shown) == 1


def test_the_batch_is_another_one_each_time_and_its_seed_is_printed(shown, monkeypatch, capsys):
    draw_class_folders(Path("dataset"), counts=(1, 1, 40))
    for _ in range(2):
        infer(monkeypatch)
    seeds = re.findall(r"seed of the test batch: (\d+)\.\.\.", capsys.readouterr().out)
    infer(monkeypatch, "--seed", seeds[0])
    (first, other, again) = (paths for paths, *_ in shown)
    assert first == again
    assert first != other
    (_, _, hits) = shown[-1]
    line = f"[INFO] correct predictions: {sum(hits)} of 4..."
    assert capsys.readouterr().out.count(line) == 1


def test_several_processes_are_refused(shown, monkeypatch):
    monkeypatch.setattr(devices, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="with python, not with torchrun"):
        infer(monkeypatch, "lunch.jpg")


def test_a_normal_run_prints_no_warning(finishedRun, monkeypatch, capfd):
    ((folder, _), (_, _, inference, _)) = finishedRun
    assert inference.stderr == ""
    monkeypatch.chdir(folder)
    infer(monkeypatch, "dataset")
    (out, err) = capfd.readouterr()
    assert err == ""
    assert len(re.findall(r"\.jpg: (?:\w+ [01]\.\d\d(?:, |\n)){3}", out)) == 77
