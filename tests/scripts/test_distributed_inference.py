"""Step 3: a batch of test images, and photographs that are given."""

import os
import re
from pathlib import Path

import distributed_inference
from pyimagesearch import config, create_dataloaders, devices, reporting
from pyimagesearch.cli import UserError
from pyimagesearch.food_classifier import FoodClassifier
from pyimagesearch.images import load_image

import numpy as np
import pytest
import torch
from helpers import CLASSES, TinyNet, draw_class_folders, draw_image, save_weights


@pytest.fixture
def shown(tinyNet, monkeypatch):
    """Have weights that always say Egg; collect pictures, titles and hits of results.png."""
    save_weights(CLASSES, [1.0, 3.0, 0.0])
    (plots, plot_pictures) = ([], reporting.plot_pictures)

    def plot_and_keep(path, *args):
        assert path == config.RESULTS_PATH
        plots.append((*args, None)[:3])
        # many take seconds; test_reporting.py looks at them
        if len(args[0]) < 10:
            plot_pictures(path, *args)

    monkeypatch.setattr(reporting, "plot_pictures", plot_and_keep)
    return plots


@pytest.mark.parametrize(("numGPU", "images", "count"), [(0, 1, 3), (1, 3, 4), (2, 3, 8)])
def test_a_batch_is_shown_as_the_network_sees_it_under_truth_and_prediction(
    shown, monkeypatch, capsys, numGPU, images, count
):
    monkeypatch.setattr(devices, "count_gpus", lambda: numGPU)
    # the first time fewer images than a batch
    draw_class_folders(counts=(1, 1, images))
    # config.py by now says other things, which the weights know better
    config.CLASSES = ["Pizza", "Soup"]

    def predict_by_colour(model, x):
        assert isinstance(model, torch.nn.DataParallel) == (numGPU > 1)
        red = x.mean((1, 2, 3)).sigmoid()
        return torch.stack([red / 2, red, red / 3], 1)

    monkeypatch.setattr(distributed_inference, "predict", predict_by_colour)
    distributed_inference.main([])
    assert f"number of GPUs found: {numGPU}..." in (out := capsys.readouterr().out)
    assert f"using a batch size of {4 * max(numGPU, 1)}..." in out
    ((pictures, titles, hits),) = shown
    assert len(pictures) == len(titles) == len(hits) == count
    assert (config.IMAGE_SIZE, config.MEAN, config.CLASSES) == (48, [0.5] * 3, CLASSES)
    # what the network takes for each file, and its picture
    files = list(Path("dataset/evaluation").glob("*/*.jpg"))
    transform = create_dataloaders.test_transform()
    inputs = [transform(load_image(str(path))) for path in files]
    answers = [float(x.mean().sigmoid()) for x in inputs]
    found = []
    for picture, title, hit in zip(pictures, titles, hits, strict=True):
        errors = [np.abs(picture - (x * 0.25 + 0.5).permute(1, 2, 0).numpy()) for x in inputs]
        index = int(np.argmin([error.max() for error in errors]))
        assert errors[index].max() < 1e-5
        found.append(index)
        truth = files[index].parent.name
        assert title == f"Ground Truth: {truth},\nPredicted: Egg {answers[index]:.2f}"
        assert hit == (truth == "Egg")
    assert len(set(found)) == count
    assert f"correct predictions: {sum(hits)} of {count}..." in out
    assert Path(config.RESULTS_PATH).exists()


def test_the_batch_is_another_one_each_time_and_its_printed_seed_repeats_it(shown, capsys):
    draw_class_folders(counts=(1, 1, 40))
    for _ in range(2):
        distributed_inference.main([])
    seeds = re.findall(r"seed of the test batch: (\d+)\.\.\.", capsys.readouterr().out)
    distributed_inference.main(["--seed", seeds[0]])
    (first, other, again) = (np.stack(pictures) for (pictures, *_) in shown)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_predictions_of_an_image_do_not_depend_on_the_others_of_its_batch():
    (model, x) = (FoodClassifier(TinyNet(), 3).to(config.DEVICE), torch.randn(4, 3, 8, 8))
    alone = distributed_inference.predict(model, x[:1])
    torch.testing.assert_close(distributed_inference.predict(model.train(), x)[:1], alone)
    assert alone.sum().item() == pytest.approx(1)


def test_a_test_set_of_other_classes_than_the_weights_is_refused(shown):
    draw_class_folders(classes=["Bread", "Egg"])
    text = "evaluation has the classes Bread, Egg; .* weights have Bread, Egg, Soup;"
    with pytest.raises(UserError, match=text):
        distributed_inference.main([])
    assert not shown


def test_files_and_folders_are_classified_with_the_weights_alone(shown, capsys):
    draw_image("lunch.jpg", 3, size=(1200, 300))
    for path in ("rome/1.jpg", "oslo/1.jpg", "oslo/week/2.png"):
        draw_image(path, 3)
    config.CLASSES = ["Pizza", "Soup"]
    distributed_inference.main(["rome", "lunch.jpg", "oslo"])
    out = capsys.readouterr().out.replace(os.sep, "/")
    guesses = ["Egg 0.84", "Bread 0.11", "Soup 0.04"]
    paths = ["rome/1.jpg", "lunch.jpg", "oslo/1.jpg", "oslo/week/2.png"]
    assert re.findall(r"^(\S+): (.*Egg.*)$", out, re.M) == [(p, ", ".join(guesses)) for p in paths]
    ((pictures, titles, hits),) = shown
    # those of one name are told by their folders
    names = ["rome/1.jpg", "lunch.jpg", "oslo/1.jpg", "week/2.png"]
    assert titles == ["\n".join([name.replace("/", os.sep), *guesses]) for name in names]
    # in their own proportions, large ones small
    assert [picture.size for picture in pictures] == [(40, 32), (512, 128), (40, 32), (40, 32)]
    assert not hits
    assert Path(config.RESULTS_PATH).exists()


def test_weights_from_elsewhere_with_two_classes_can_be_used(shown, capsys):
    save_weights(["cat", "dog"], [0.0, 3.0])
    os.rename(config.MODEL_PATH, "best of march.pth")
    draw_image("lunch.jpg", 3)
    distributed_inference.main(["lunch.jpg", "--weights", "best of march.pth"])
    assert "lunch.jpg: dog 0.95, cat 0.05\n" in capsys.readouterr().out
    draw_class_folders(classes=["cat", "dog"])
    distributed_inference.main(["--weights", "best of march.pth"])
    assert all("Predicted: dog 0.95" in title for title in shown[-1][1])


def test_an_unreadable_photograph_is_named_and_the_others_are_classified(shown, capsys):
    for name in ("a.jpg", "c.webp", "._d.jpg"):
        draw_image(Path("holiday", name), 3)
    for name in ("b.jpg", "e.HEIC"):
        Path("holiday", name).write_text("no image")
    # which makes the exit status 1
    with pytest.raises(UserError, match="left out.*: 2 of 4"):
        distributed_inference.main(["holiday", "gone.jpg"])
    out = capsys.readouterr().out.replace(os.sep, "/")
    assert re.findall(r"^holiday/(\S+): Egg", out, re.M) == ["a.jpg", "c.webp"]
    assert "left out: holiday/b.jpg: cannot be read as an image" in out
    assert re.search(r"left out: .*gone.jpg", out)
    assert re.search(r"not read in holiday: 1 \.heic.*JPEG", out)
    assert len(shown[0][0]) == 2


def test_what_the_scripts_drew_is_no_photograph_but_a_star_that_no_shell_expanded_is(shown, capsys):
    draw_image("1.jpg", 3)
    draw_image("2.jpg", 3)
    distributed_inference.main(["."])
    # which a later run moves aside
    os.renames(config.RESULTS_PATH, "output/run-1/results.png")
    distributed_inference.main(["."])
    # as the Windows Command Prompt hands it on
    distributed_inference.main(["*.jpg"])
    found = re.findall(r"^(\S+): Egg", capsys.readouterr().out, re.M)
    assert found == ["1.jpg", "2.jpg"] * 3
    with pytest.raises(UserError, match="^output: no image in this folder"):
        distributed_inference.find_images(["output"])


def test_the_picture_has_room_for_some_of_many_photographs_evenly_from_all_folders(shown, capsys):
    for folder, count in (("april", 30), ("may", 20), ("june", 1)):
        for number in range(count):
            draw_image(Path(folder, f"{number:02}.jpg"), 3, size=(8, 8))
    distributed_inference.main(["april", "may", "june"])
    ((pictures, titles, _),) = shown
    assert len(pictures) == len(titles) <= reporting.MAX_PICTURES
    folders = [title.split(os.sep)[0] for title in titles]
    assert folders.count("april") > folders.count("may") > 5
    assert f": {len(pictures)} of 51..." in (out := capsys.readouterr().out)
    assert out.count(": Egg 0.84") == 51
