"""Step 3: a batch of test images, and photographs that are given."""

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CLASSES, DEFAULTS, TinyNet, call, draw_class_folders, draw_image, save_weights

import distributed_inference
from pyimagesearch import config
from pyimagesearch.create_dataloaders import eval_transform
from pyimagesearch.food_classifier import FoodClassifier, Normalize, predict
from pyimagesearch.support import devices, figures, photographs
from pyimagesearch.support.errors import UserError
from pyimagesearch.support.images import load_image


def infer(*flags):
    call(distributed_inference.main, *flags)


def find_classified(out):
    """Return the paths of the photographs that were classified, in the order of the lines."""
    return re.findall(r"^(\S+): Egg", out.replace(os.sep, "/"), re.M)


@pytest.fixture
def shown(tinyNet, monkeypatch):
    """Have weights that always say Egg; collect pictures, titles and hits of results.png."""
    save_weights(CLASSES, [1.0, 3.0, 0.0])
    plots = []
    plot_pictures = figures.plot_pictures

    def plot_and_keep(path, pictures, titles, hits=None, isShown=False):
        assert path == config.RESULTS_PATH
        # a loop over new photographs must not wait for somebody who closes a window
        assert isShown == (hits is not None)
        plots.append((pictures, titles, hits))
        # many take seconds; test_figures.py looks at them
        if len(pictures) < 10:
            plot_pictures(path, pictures, titles, hits)

    monkeypatch.setattr(figures, "plot_pictures", plot_and_keep)
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
        # which the weights leave as it is
        assert (config.IMAGE_SIZE, config.MEAN) == (DEFAULTS["IMAGE_SIZE"], DEFAULTS["MEAN"])
        assert config.CLASSES == ["Pizza", "Soup"]
        red = x.mean((1, 2, 3)).sigmoid()
        return torch.stack([red / 2, red, red / 3], 1)

    monkeypatch.setattr(distributed_inference, "predict", predict_by_colour)
    infer()
    out = capsys.readouterr().out
    assert f"number of GPUs found: {numGPU}..." in out
    assert f"using a batch size of {4 * max(numGPU, 1)}..." in out
    ((pictures, titles, hits),) = shown
    assert len(pictures) == len(titles) == len(hits) == count
    # what the network takes for each file, and its picture
    files = list(Path("dataset/evaluation").glob("*/*.jpg"))
    transform = eval_transform(48)
    inputs = [transform(load_image(str(path))) for path in files]
    normalize = Normalize([0.5] * 3, [0.25] * 3)
    found = []
    for picture, title, hit in zip(pictures, titles, hits, strict=True):
        errors = []
        for x in inputs:
            expected = (x / 255).permute(1, 2, 0).numpy()
            errors.append(np.abs(picture - expected).max())
        index = int(np.argmin(errors))
        assert errors[index] < 1e-5
        found.append(index)
        truth = files[index].parent.name
        answer = float(normalize(inputs[index]).mean().sigmoid())
        assert title == f"Ground Truth: {truth},\nPredicted: Egg {answer:.2f}"
        assert hit == (truth == "Egg")
    assert len(set(found)) == count
    assert f"correct predictions: {sum(hits)} of {count}..." in out
    assert Path(config.RESULTS_PATH).exists()


def test_the_batch_is_another_one_each_time_and_its_printed_seed_repeats_it(shown, capsys):
    draw_class_folders(counts=(1, 1, 40))
    infer()
    infer()
    seeds = re.findall(r"seed of the test batch: (\d+)\.\.\.", capsys.readouterr().out)
    infer("--seed", seeds[0])
    (first, other, again) = [np.stack(pictures) for pictures, _, _ in shown]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_seed_of_the_batch_is_not_that_of_a_training(shown, monkeypatch):
    draw_class_folders(counts=(1, 1, 3))

    def predict_and_look(model, x):
        assert config.SEED == DEFAULTS["SEED"]
        return predict(model, x)

    monkeypatch.setattr(distributed_inference, "predict", predict_and_look)
    infer()
    infer("--seed", "7")
    assert len(shown) == 2


def test_only_a_flag_that_was_given_is_said_to_override_a_setting(shown, capsys):
    draw_class_folders(counts=(1, 1, 3))
    config.STD = [0.5] * 3
    for flags in ([], ["--seed", "7"], ["--weights", config.MODEL_PATH]):
        infer(*flags)
    assert "overridden" not in capsys.readouterr().out
    infer("--pred-batch-size", "2")
    out = capsys.readouterr().out
    assert "[INFO] overridden by flags: PRED_BATCH_SIZE = 2...\n" in out
    assert "using a batch size of 2..." in out


def test_predictions_of_an_image_do_not_depend_on_the_others_of_its_batch():
    model = FoodClassifier(TinyNet(), 3).to(config.DEVICE)
    x = torch.randn(4, 3, 8, 8)
    alone = predict(model, x[:1])
    torch.testing.assert_close(predict(model.train(), x)[:1], alone)
    assert alone.sum().item() == pytest.approx(1)


def test_a_test_set_of_other_classes_than_the_weights_is_refused(shown):
    draw_class_folders(classes=["Bread", "Egg"])
    text = "evaluation has the classes Bread, Egg, but the weights have Bread, Egg, Soup;"
    with pytest.raises(UserError, match=text):
        infer()
    assert not shown


def test_files_and_folders_are_classified_with_the_weights_alone(shown, capsys):
    draw_image("lunch.jpg", 3, size=(1200, 300))
    for path in ("rome/1.jpg", "oslo/1.jpg", "oslo/week/2.png"):
        draw_image(path, 3)
    config.CLASSES = ["Pizza", "Soup"]
    infer("rome", "lunch.jpg", "oslo")
    out = capsys.readouterr().out.replace(os.sep, "/")
    guesses = ["Egg 0.84", "Bread 0.11", "Soup 0.04"]
    assert find_classified(out) == ["rome/1.jpg", "lunch.jpg", "oslo/1.jpg", "oslo/week/2.png"]
    assert out.count(f": {', '.join(guesses)}\n") == 4
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
    infer("lunch.jpg", "--weights", "best of march.pth")
    assert "lunch.jpg: dog 0.95, cat 0.05\n" in capsys.readouterr().out
    draw_class_folders(classes=["cat", "dog"])
    infer("--weights", "best of march.pth")
    assert all("Predicted: dog 0.95" in title for title in shown[-1][1])


def test_an_unreadable_photograph_is_named_and_the_others_are_classified(shown, capsys):
    for name in ("a.jpg", "c.webp", "._d.jpg"):
        draw_image(Path("holiday", name), 3)
    for name in ("b.jpg", "e.HEIC"):
        Path("holiday", name).write_text("no image")
    # which makes the exit status 1
    with pytest.raises(UserError, match="left out.*: 2 of 4"):
        infer("holiday", "gone.jpg")
    out = capsys.readouterr().out.replace(os.sep, "/")
    assert find_classified(out) == ["holiday/a.jpg", "holiday/c.webp"]
    assert "left out: holiday/b.jpg: cannot be read as an image" in out
    assert re.search(r"left out: .*gone.jpg", out)
    assert re.search(r"not read in holiday: 1 \.heic.*JPEG", out)
    assert len(shown[0][0]) == 2


def test_thumbnails_of_the_system_are_not_classified_and_what_is_in_the_cloud_is_said(
    shown, capsys
):
    draw_image("holiday/lunch.jpg", 3)
    draw_image("holiday/@eaDir/lunch.jpg/SYNOFILE_THUMB_M.jpg", 3)
    Path("holiday/dinner.jpg.nextcloud").touch()
    Path("holiday/.tea.jpg.icloud").touch()
    infer("holiday")
    out = capsys.readouterr().out
    assert find_classified(out) == ["holiday/lunch.jpg"]
    assert "[INFO] passed over 1 files in system folders, such as holiday/@eaDir/lunch.jpg/" in out
    text = "2 photographs in holiday are not downloaded, such as holiday/.tea.jpg.icloud: have"
    assert f"[INFO] {text} the cloud program download them...\n" in out
    # where that is all, it is said why there is nothing to classify
    os.remove("holiday/lunch.jpg")
    with pytest.raises(UserError, match="no image in this folder"):
        infer("holiday")
    assert text in capsys.readouterr().out


def test_what_the_scripts_drew_is_no_photograph_and_is_said_to_be_passed_over(shown, capsys):
    draw_image("lunch.jpg", 3)
    infer("lunch.jpg")
    # an evaluation and a later run leave more
    drawn = ["output/results.png"]
    for name in ("evaluation-best-1/mistakes.png", "run-1/confusion_matrix.png"):
        draw_image(Path("output", name), 3)
        drawn.append(f"output/{name}")
    capsys.readouterr()
    infer(".")
    out = capsys.readouterr().out.replace(os.sep, "/")
    assert find_classified(out) == ["lunch.jpg"]
    (line,) = re.findall(r"passed over what the scripts drew: (.+)\.\.\.", out)
    assert sorted(line.split(", ")) == sorted(drawn)
    with pytest.raises(UserError, match="^output: no image in this folder"):
        infer("output")
    # one that is named is wanted
    capsys.readouterr()
    infer(drawn[1])
    assert find_classified(capsys.readouterr().out) == [drawn[1]]


def test_a_photograph_of_ones_own_with_the_name_of_a_picture_is_classified(shown, capsys):
    # beside the folders that the scripts write, and in others in output/
    names = ["results.png", "holiday/mistakes.png", "holiday/run-1/results.png"]
    names += ["output/lunch.png", "output/holiday/results.png", "output/run-1/lunch.png"]
    for name in names:
        draw_image(name, 3)
    infer(".")
    out = capsys.readouterr().out
    assert sorted(find_classified(out)) == sorted(names)
    assert "passed over" not in out


def test_a_star_that_no_shell_expanded_names_photographs(shown, capsys):
    draw_image("1.jpg", 3)
    draw_image("2.jpg", 3)
    # as the Windows Command Prompt hands it on
    infer("*.jpg")
    assert find_classified(capsys.readouterr().out) == ["1.jpg", "2.jpg"]


def test_the_picture_has_room_for_some_of_many_photographs_evenly_from_all_folders(shown, capsys):
    for folder, count in (("april", 30), ("may", 20), ("june", 1)):
        for number in range(count):
            draw_image(Path(folder, f"{number:02}.jpg"), 3, size=(8, 8))
    infer("april", "may", "june")
    ((pictures, titles, _),) = shown
    assert len(pictures) == len(titles) <= figures.MAX_PICTURES
    folders = [title.split(os.sep)[0] for title in titles]
    assert folders.count("april") > folders.count("may") > 5
    out = capsys.readouterr().out
    assert f": {len(pictures)} of 51..." in out
    assert out.count(": Egg 0.84") == 51


def read_rows():
    """Return the rows of photographs.csv below the names of its columns."""
    with open(config.PHOTOGRAPHS_PATH, newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))[1:]


@pytest.mark.parametrize("numWorkers", [0, 2])
@pytest.mark.parametrize("numGPU", [0, 2])
def test_batches_that_workers_read_are_printed_and_listed_in_the_order_of_the_names(
    shown, monkeypatch, capsys, numWorkers, numGPU
):
    # one that is broken in the second batch, and a batch of broken ones
    names = [f"holiday/{number:02}.jpg" for number in range(40)]
    for number, name in enumerate(names):
        draw_image(name, 3, number, size=(8, 8))
    broken = [names[number] for number in (9, 16, 17, 18, 19)]
    for name in broken:
        Path(name).write_text("no image")
    sizes = []

    def predict_and_count(model, x):
        sizes.append(len(x))
        assert isinstance(model, torch.nn.DataParallel) == (numGPU == 2)
        return predict(model, x)

    monkeypatch.setattr(devices, "count_gpus", lambda: numGPU)
    monkeypatch.setattr(distributed_inference, "predict", predict_and_count)
    batchSize = 4 // max(numGPU, 1)
    flags = ["--local-batch-size", str(batchSize), "--num-workers", str(numWorkers)]
    with pytest.raises(UserError, match="left out.*: 5 of 40"):
        infer("holiday", *flags)
    good = [name for name in names if name not in broken]
    out = capsys.readouterr().out
    assert find_classified(out) == good
    assert re.findall(r"left out: (\S+):", out.replace(os.sep, "/")) == broken
    rows = read_rows()
    assert [row[0].replace(os.sep, "/") for row in rows] == good
    for row in rows:
        assert row[1:4] == ["Egg", "Bread", "Soup"]
        assert [float(text) for text in row[4:]] == pytest.approx(
            [0.8438, 0.1142, 0.0420], abs=1e-4
        )
    assert sizes == [4, 4, 3] + [4] * 6
    assert f"saved {config.PHOTOGRAPHS_PATH}: 35 photographs" in out


def test_the_table_is_whole_where_classifying_is_stopped(shown, monkeypatch):
    for number in range(20):
        draw_image(f"holiday/{number:02}.jpg", 3, number, size=(8, 8))

    def predict_and_stop(model, x):
        if len(read_rows()) == 8:
            raise KeyboardInterrupt
        return predict(model, x)

    monkeypatch.setattr(distributed_inference, "predict", predict_and_stop)
    with pytest.raises(KeyboardInterrupt):
        infer("holiday", "--local-batch-size", "4")
    assert [Path(row[0]).name for row in read_rows()] == [f"{number:02}.jpg" for number in range(8)]


@pytest.mark.parametrize("flags", [["holiday"], ["--seed", "1"]])
def test_torchrun_would_have_each_process_do_the_same(shown, monkeypatch, flags):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="once, with python"):
        infer(*flags)
    assert not os.path.exists(config.PHOTOGRAPHS_PATH)


def test_few_photographs_start_no_worker_and_many_no_more_than_there_are_cpus(shown, monkeypatch):
    started = []
    loader = photographs.DataLoader

    def start(dataset, **options):
        started.append((options["num_workers"], options["batch_size"]))
        return loader(dataset, **{**options, "num_workers": 0, "multiprocessing_context": None})

    monkeypatch.setattr(photographs, "DataLoader", start)
    config.NUM_WORKERS = 3
    for number in range(40):
        draw_image(f"holiday/{number:02}.jpg", 3, number, size=(8, 8))
    infer("holiday/00.jpg")
    infer("holiday", "--local-batch-size", "32")
    infer("holiday", "--local-batch-size", "2")
    # each worker reads its part of a batch
    assert started == [(0, 32), (3, 10), (3, 1)]


@pytest.mark.parametrize(
    "flags",
    [
        ["lunch.jpg", "--seed", "3"],
        ["lunch.jpg", "--pred-batch-size", "8"],
        ["--local-batch-size", "8"],
        ["--num-workers", "0"],
    ],
)
def test_a_flag_that_would_be_ignored_is_refused(shown, capsys, flags):
    with pytest.raises(SystemExit, match="2"):
        infer(*flags)
    assert "-batch-size" in capsys.readouterr().err
    assert not shown
