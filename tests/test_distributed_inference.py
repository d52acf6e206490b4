from pathlib import Path

import pytest
import torch
from conftest import TinyNet, draw_class_folders, draw_image

import distributed_inference
from pyimagesearch import config, devices, files, reporting
from pyimagesearch.food_classifier import FoodClassifier


@pytest.fixture
def shown(monkeypatch):
    """Set up a trained network that always says Egg; collect the pictures that are plotted."""
    monkeypatch.setattr(distributed_inference, "densenet121", lambda weights: TinyNet())
    model = FoodClassifier(TinyNet(), 3)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 3.0, 1.0]))
    files.save_state(model.state_dict(), config.MODEL_PATH)
    (config.CLASSES, config.IMAGE_SIZE) = (["Soup", "Egg", "Bread"], 32)
    plots = []
    plot_predictions = reporting.plot_predictions

    def plot_and_keep(images, titles):
        plots.append((images, titles))
        plot_predictions(images, titles)

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
    assert capsys.readouterr().out == (
        f"[INFO] number of GPUs found: {numGPU}...\n[INFO] using a batch size of {count}...\n"
    )
    ((images, titles),) = shown
    assert images.shape == (count, 3, 32, 32)
    assert len(titles) == count
    truths = {title.removesuffix(", Predicted: Egg") for title in titles}
    assert 1 < len(truths) <= 3
    assert truths <= {f"Ground Truth: {name}" for name in ("Bread", "Egg", "Soup")}
    assert Path(config.RESULTS_PATH).exists()


def test_fewer_test_images_than_a_batch_are_all_shown(shown, monkeypatch):
    draw_class_folders(Path("dataset"), counts=(1, 1, 1))
    infer(monkeypatch, "--pred-batch-size", "32")
    assert len(shown[0][1]) == 3


def test_seed_chooses_the_batch(shown, monkeypatch):
    draw_class_folders(Path("dataset"), counts=(1, 1, 12))
    for seed in ("1", "1", "2"):
        infer(monkeypatch, "--seed", seed)
    (first, again, other) = (images for images, _ in shown)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_files_are_classified_with_no_data_set_there(shown, monkeypatch, capsys):
    for number in range(6):
        draw_image(Path(f"photo {number}.jpg"), number)
    infer(monkeypatch, *(f"photo {number}.jpg" for number in range(6)))
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines == [f"photo {n}.jpg: Egg 0.84, Soup 0.11, Bread 0.04" for n in range(6)]
    assert shown[0][1] == ["Predicted: Egg 0.84"] * 6
