import os
import re
from pathlib import Path

import distributed_inference
from pyimagesearch import (
    checkpoint,
    config,
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
    plot_predictions = reporting.plot_predictions

    def plot_and_keep(images, titles, hits=None):
        plots.append((images, titles, hits))
        plot_predictions(images, titles, hits)

    monkeypatch.setattr(reporting, "plot_predictions", plot_and_keep)
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
    ((pictures, titles, hits),) = shown
    assert [picture.shape for picture in pictures] == [(64, 64, 3)] * count
    assert len(titles) == count
    truths = [title.removesuffix(",\nPredicted: Egg") for title in titles]
    assert 1 < len(set(truths)) <= 3
    assert set(truths) <= {f"Ground Truth: {name}" for name in ("Bread", "Egg", "Soup")}
    assert hits == [truth == "Ground Truth: Egg" for truth in truths]
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
    (first, again, other) = (images for images, *_ in shown)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


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
    assert lines[-37:-1] == answers
    # the picture has room for the first 32 alone
    assert lines[-1] == f"[INFO] {config.RESULTS_PATH} shows 32 of 36 images..."
    ((pictures, titles, hits),) = shown
    assert len(pictures) == 32
    for picture, path in zip(pictures, paths, strict=False):
        assert picture == images.load_image(path)
    guesses = "Egg 0.84\nSoup 0.11\nBread 0.04"
    assert titles == [f"{os.path.basename(path)}\n{guesses}" for path in paths]
    assert hits is None


def test_the_normalization_is_undone(shown, monkeypatch):
    draw_class_folders(Path("dataset"), classes=["Bread", "Egg", "Soup"], counts=(1, 1, 1))
    infer(monkeypatch)
    ((pictures, titles, _),) = shown
    for picture, title in zip(pictures, titles, strict=True):
        (name,) = re.findall(r"Ground Truth: (\w+)", title)
        image = images.load_image(f"dataset/evaluation/{name}/0.jpg").resize((64, 64))
        assert np.abs(picture - np.asarray(image) / 255).mean() < 0.02


def save_weights(classes):
    """Save the weights of a network that always says the second class, trained at 48 px."""
    config.IMAGE_SIZE = 48
    (config.MEAN, config.STD) = ([0.5] * 3, [0.25] * 3)
    model = FoodClassifier(TinyNet(), len(classes))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.arange(len(classes)) == 1)
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
    assert "[INFO] non-image files in holiday: 1 ._*, 1 .heic, 1 .txt..." in out
    ((pictures, _, _),) = shown
    assert len(pictures) == 2


def test_nothing_is_shown_where_no_photograph_can_be_read(shown, monkeypatch):
    Path("a.jpg").write_text("no image")
    with pytest.raises(UserError, match="^photographs left out: 1 of 1; a.jpg: cannot"):
        infer(monkeypatch, "a.jpg")
    assert not shown
    assert not os.path.exists(config.RESULTS_PATH)


def test_photographs_are_shown_in_their_own_proportions(shown, monkeypatch):
    draw_image(Path("panorama.jpg"), 3, size=(1200, 300))
    draw_image(Path("portrait.jpg"), 3, size=(30, 40))
    infer(monkeypatch, "panorama.jpg", "portrait.jpg")
    ((pictures, _, _),) = shown
    assert [picture.size for picture in pictures] == [(512, 128), (30, 40)]


def test_the_batch_is_another_one_each_time_and_its_seed_is_printed(shown, monkeypatch, capsys):
    draw_class_folders(Path("dataset"), counts=(1, 1, 40))
    for _ in range(2):
        infer(monkeypatch)
    seeds = re.findall(r"seed of the test batch: (\d+)\.\.\.", capsys.readouterr().out)
    infer(monkeypatch, "--seed", seeds[0])
    (first, other, again) = (np.stack(pictures) for pictures, *_ in shown)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    (_, _, hits) = shown[-1]
    line = f"[INFO] correct predictions: {sum(hits)} of 4..."
    assert capsys.readouterr().out.count(line) == 1


def test_several_processes_are_refused(shown, monkeypatch):
    monkeypatch.setattr(devices, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="with python, not with torchrun"):
        infer(monkeypatch, "lunch.jpg")


def test_a_normal_run_prints_no_warning(finishedRun, monkeypatch, capfd):
    (folder, (_, _, inference)) = finishedRun
    assert inference.stderr == ""
    monkeypatch.chdir(folder)
    infer(monkeypatch, "dataset")
    (out, err) = capfd.readouterr()
    assert err == ""
    assert len(re.findall(r"\.jpg: (?:\w+ [01]\.\d\d(?:, |\n)){3}", out)) == 77
