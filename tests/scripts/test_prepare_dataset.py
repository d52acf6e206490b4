"""Step 1 on folders, files and names as people have them."""

import errno
import multiprocessing
import os
import re
import shutil
import unicodedata
from pathlib import Path
from unittest.mock import Mock

import prepare_dataset
from pyimagesearch import cli, config, sample_dataset
from pyimagesearch.dataset_checks import PROBLEMS_PATH

import pytest
from helpers import DEFAULTS, SPLITS, draw_food11, draw_image, read_tree
from PIL import Image

NAMES = ("pie", "ribs", "tartare")
# in a zip from Windows
ECLAIR = os.fsdecode(b"\xe9clair")


def prepare(*flags):
    prepare_dataset.main([*flags])


def draw_photos(root="photos", counts=(7, 7, 7), names=NAMES):
    """Draw photographs in a folder for each class, no two the same."""
    for index, (name, count) in enumerate(zip(names, counts, strict=True)):
        for number in range(count):
            seed = list(os.fsencode(f"{root} {name} {number}"))
            draw_image(Path(root, name, f"{number}.jpg"), index * 3, seed, (16, 12))


def draw_splits(names=("train", "val", "test")):
    for name, count in zip(names, (3, 2, 1), strict=True):
        draw_photos(f"photos/{name}", [count] * 3)


@pytest.fixture(autouse=True)
def photos():
    """Have prepare take the class folders in photos/."""
    (config.DATA_PATH, config.CLASSES) = ("photos", list(NAMES))


def set_base_path(base):
    config.BASE_PATH = base
    for name, split in zip(("TRAIN", "VAL", "TEST"), SPLITS, strict=True):
        setattr(config, name, os.path.join(base, split))


def read_copies():
    """Return the bytes of the copies by their paths in TRAIN, VAL or TEST."""
    copies = [item for split in SPLITS for item in read_tree(f"dataset/{split}").items()]
    assert len(dict(copies)) == len(copies)
    return dict(copies)


def fail(capsys, *flags):
    """Prepare, which must find something wrong and copy nothing; return all that it says."""
    before = read_tree("dataset")
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: prepare(*flags), advice="")
    assert read_tree("dataset") == before
    return capsys.readouterr().out + str(caught.value)


def read_problems():
    """Return {path: what is wrong with it} from the list of images."""
    return dict(line.split(": ", 1) for line in Path(PROBLEMS_PATH).read_text().splitlines())


def test_food11_is_copied_into_class_folders_and_prints_the_tutorials_lines(capsys):
    draw_food11("Food-11")
    config.DATA_PATH = "Food-11"
    # the index counts, not the alphabet
    config.CLASSES = DEFAULTS["CLASSES"][::-1]
    prepare()
    (out, err) = capsys.readouterr()
    lines = "[INFO] copying images...\n"
    for split, count in zip(SPLITS, (33, 22, 22), strict=True):
        lines += f"[INFO] total images found: {count}...\n"
        lines += f"[INFO] total images copied to {os.path.join('dataset', split)}: {count}...\n"
        source = read_tree(f"Food-11/{split}").items()
        assert read_tree(f"dataset/{split}") == {
            f"{config.CLASSES[int(name.split('_')[0])]}/{name}": data for name, data in source
        }
    (_, found, table) = out.partition(lines)
    assert found
    (head, *rows) = [line.split() for line in table.splitlines()]
    assert head == list(SPLITS)
    assert rows[:-1] == [[label, "3", "2", "2"] for label in config.CLASSES]
    assert rows[-1] == ["total", "33", "22", "22"]
    # no problem of any kind, and no progress bar in a log file
    assert not os.path.exists(PROBLEMS_PATH)
    assert err == ""


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_class_folders_as_people_name_them_are_their_class_and_albums_stay_apart(form):
    (label, folder) = (unicodedata.normalize(f, "Crème brûlée") for f in (form, "NFC"))
    config.CLASSES = ["Bread", "Fried_food", "Noodles/Pasta", "Vegetable/Fruit", label]
    labels = {
        "BREAD": "Bread",
        "Bread/2023": "Bread/2023",
        "Bread/2024/Egg": "Bread/2024/Egg",
        "fried food": "Fried_food",
        "Fried-Food/trip": "Fried_food/trip",
        "Noodles/Pasta": "Noodles/Pasta",
        "Noodles-Pasta/album": "Noodles/Pasta/album",
        "noodles_pasta/trip": "Noodles/Pasta/trip",
        "Vegetable_Fruit": "Vegetable/Fruit",
        folder: label,
        unicodedata.normalize("NFD", folder) + "/a": f"{label}/a",
    }
    draw_photos(counts=[3] * len(labels), names=labels)
    prepare()
    source = read_tree("photos")
    assert read_copies() == {
        f"{target}/{number}.jpg": source[f"{name}/{number}.jpg"]
        for name, target in labels.items()
        for number in range(3)
    }


@pytest.mark.parametrize(
    "names",
    [("train", "val", "test"), ("Train", "Valid", "TEST"), ("training", "validation", "testing")],
)
def test_splits_go_where_their_names_say_and_what_lies_beside_them_is_said(names, capsys):
    draw_splits(names)
    draw_photos("photos/extra")
    draw_image("photos/lunch.jpg", 0)
    os.mkdir("photos/.git")
    prepare()
    for split, name in zip(SPLITS, names, strict=True):
        assert read_tree(f"dataset/{split}") == read_tree(f"photos/{name}")
    assert "not copied: 2, such as photos/extra..." in capsys.readouterr().out


def test_a_class_may_be_named_like_a_split():
    config.CLASSES = ["test", "train", "pie"]
    draw_photos(names=config.CLASSES)
    prepare()
    assert read_copies() == read_tree("photos")
    assert sorted(os.listdir("dataset/training")) == ["pie", "test", "train"]


@pytest.mark.parametrize(
    ("given", "heldOut"),
    [
        ([], ["validation", "evaluation"]),
        (["train", "val"], ["evaluation"]),
        (["train", "test"], ["validation"]),
    ],
)
def test_a_split_that_is_not_there_is_held_out_of_each_class_the_same_on_every_run(
    given, heldOut, capsys, monkeypatch
):
    root = "photos/train" if given else "photos"
    draw_photos(root, (20, 7, 3))
    for name in given[1:]:
        draw_photos(f"photos/{name}", (2, 2, 2))
    prepare()
    out = capsys.readouterr().out
    for split in heldOut:
        # 15 %, at least one
        assert [len(os.listdir(f"dataset/{split}/{name}")) for name in NAMES] == [3, 1, 1]
        assert re.search(rf"held out of {root} for dataset/{split}: 5\b", out)
    before = read_tree("dataset")
    # each image once
    assert sorted(before.values()) == sorted(read_tree("photos").values())
    # a disk may list its files in any order
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listdir(path)[::-1])
    shutil.rmtree("dataset")
    prepare()
    assert read_tree("dataset") == before
    shutil.rmtree("dataset")
    prepare("--seed", "7")
    assert set(read_tree("dataset")) != set(before)


def test_without_training_images_that_is_said_and_not_that_the_splits_are_no_classes(capsys):
    draw_photos("photos/val")
    draw_photos("photos/test")
    text = fail(capsys)
    assert "training" in text and "CLASSES" not in text


def test_all_that_is_wrong_is_said_once_and_listed_and_nothing_is_copied(capsys):
    draw_food11("Food-11", numClasses=3)
    config.DATA_PATH = "Food-11"
    whole = Path("Food-11/training/1_0.jpg").read_bytes()
    for index, data in enumerate((b"", b"no image", whole[:-40], whole[:-50])):
        # each for a reason of its own
        Path(f"Food-11/training/0_1{index}.jpg").write_bytes(data)
    draw_image("Food-11/validation/lunch.jpg", 0)
    draw_image("Food-11/validation/Pizza/0_0.jpg", 0)
    for path in Path("Food-11/evaluation").glob("1_*"):
        path.unlink()
    draw_image("dataset/training/Cake/0_0.jpg", 0)
    Path("Food-11/evaluation/1_0.HEIC").touch()
    for flags in ([], ["--skip-bad"]):
        text = fail(capsys, *flags)
        for words in (
            "Food-11/training: 4 images, such as 0_10.jpg: cannot be read",
            "Food-11/validation/lunch.jpg: ",
            "Food-11/validation/Pizza/0_0.jpg: ",
            "dataset/evaluation: no image of ribs",
            "dataset/training/Cake/0_0.jpg",
            "not read in Food-11/evaluation: 1 .heic; convert",
            PROBLEMS_PATH,
        ):
            assert text.count(words) == 1
        # a word of advice, and no line besides
        assert len(text.splitlines()) == 8 and ("--skip-bad" in text) == (not flags)
    problems = read_problems()
    assert list(problems) == [
        *[f"Food-11/training/0_1{index}.jpg" for index in range(4)],
        "Food-11/validation/Pizza/0_0.jpg",
        "Food-11/validation/lunch.jpg",
    ]
    assert len(set(problems.values())) == 6


def test_skip_bad_leaves_out_the_broken_ones_alone_and_a_clean_run_lists_none(capsys):
    draw_photos()
    expected = read_tree("photos")
    bad = {"pie/x.jpg": b"", "ribs/y.jpg": b"?", "Pizza/0.jpg": expected["pie/0.jpg"]}
    for name, data in bad.items():
        Path("photos", name).parent.mkdir(exist_ok=True)
        Path("photos", name).write_bytes(data)
    fail(capsys)
    prepare("--skip-bad")
    assert read_copies() == expected
    assert set(read_problems()) == {f"photos/{name}" for name in bad}
    assert "left out: 3" in capsys.readouterr().out
    for name in bad:
        os.remove(f"photos/{name}")
    prepare()
    assert read_copies() == expected
    assert not os.path.exists(PROBLEMS_PATH)


def test_a_disk_that_fails_ends_prepare_where_a_broken_image_would_be_skipped(monkeypatch):
    draw_photos()
    error = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(Image, "open", Mock(side_effect=error))
    with pytest.raises(OSError, match="Input/output error: 'photos/pie/0.jpg'"):
        prepare("--skip-bad")
    assert not os.path.exists("dataset")


@pytest.mark.parametrize("counts", [(7, 7, 2), (7, 7, 0)])
def test_a_class_with_too_few_photographs_for_each_split_is_named(counts, capsys):
    draw_photos(counts=counts)
    text = fail(capsys, "--skip-bad")
    (line,) = re.findall(r"(.+): no image of tartare\b", text)
    assert "dataset/training" in line


def test_loose_photographs_beside_class_folders_are_of_no_class(capsys):
    draw_photos()
    expected = read_tree("photos")
    # also where the name looks like Food-11's
    for name in ("IMG_7777.jpg", "0_5.jpg"):
        draw_image(f"photos/{name}", 0)
    text = fail(capsys)
    assert re.search("photos: 2 images.* folder", text)
    assert "index" not in text
    prepare("--skip-bad")
    assert read_copies() == expected


@pytest.mark.parametrize("splits", [[""], ["train", "val", "test"]])
@pytest.mark.parametrize("classes", [["Bread", "Egg", "Soup"], ["Egg", "pie"]])
def test_where_classes_do_not_fit_the_list_of_them_can_be_pasted(classes, splits, capsys):
    for split in splits:
        draw_photos(f"photos/{split}", names=("pie", "Apple 'Pie'", ECLAIR))
        draw_image(f"photos/{split}/IMG_1.jpg", 0)
    if splits[1:]:
        draw_image("photos/test/misc/0.jpg", 0)
    config.CLASSES = classes
    text = fail(capsys)
    assert text.count("CLASSES = ") == 1
    config.CLASSES = eval(re.search(r"CLASSES = (\[.+\])", text)[1])
    # folders only, of the training images
    assert sorted(config.CLASSES) == ["Apple 'Pie'", "pie", ECLAIR]
    # run() has any name printed
    cli.run(lambda: prepare("--skip-bad"), advice="")
    assert len(read_tree("dataset")) == 21 * len(splits)


def test_the_same_photograph_in_two_classes_or_splits_is_listed_by_its_paths(capsys):
    draw_splits()
    twice = {
        # in two classes, the second time through an album
        *("train/pie/0.jpg", "train/pie/1.jpg", "train/pie/2.jpg"),
        *("train/ribs/album/0.jpg", "train/ribs/album/1.jpg", "train/ribs/album/2.jpg"),
        # in two splits
        *("train/tartare/0.jpg", "test/tartare/lunch.jpg"),
    }
    os.symlink("../pie", "photos/train/ribs/album")
    shutil.copy("photos/train/tartare/0.jpg", "photos/test/tartare/lunch.jpg")
    # twice in one class and split, which flatters nobody
    shutil.copy("photos/val/pie/0.jpg", "photos/val/pie/lunch.jpg")
    prepare()
    problems = read_problems()
    assert {path.removeprefix("photos/") for path in problems} == twice
    assert "photos/train/tartare/0.jpg" in problems["photos/test/tartare/lunch.jpg"]
    assert PROBLEMS_PATH in capsys.readouterr().out


def test_of_images_that_would_overwrite_each_other_one_is_copied_and_the_others_are_listed(capsys):
    draw_photos(names=("Pie", "pie", "ribs"))
    config.CLASSES = ["pie", "ribs"]
    draw_image("photos/pie/A/8.jpg", 0, 1)
    draw_image("photos/Pie/a/8.jpg", 0, 2)
    draw_image("photos/ribs/0.JPG", 0, 3)
    text = fail(capsys)
    assert "photos/ribs/0.jpg" in text and "photos/ribs/0.JPG" in text
    prepare("--skip-bad")
    (listed, copies) = (read_problems(), read_tree("dataset").values())
    assert len(listed) == 9
    photographs = {f"photos/{path}": data for path, data in read_tree("photos").items()}
    assert {path for path, data in photographs.items() if data not in copies} == set(listed)
    for path, text in listed.items():
        assert re.search(r"\((.+)\)", text)[1].lower() == path.lower()


def test_photographs_that_were_added_and_removed_are_met_with_the_way_on(capsys):
    draw_splits()
    prepare()
    capsys.readouterr()
    os.remove("photos/train/pie/0.jpg")
    for number in (8, 9):
        draw_image(f"photos/train/ribs/{number}.jpg", 3, number)
    text = fail(capsys)
    (line,) = [line for line in text.splitlines() if "dataset/training" in line]
    # what is gone and what is new
    assert re.search(r"\b1 images .*\b2 new .*dataset/training/pie/0.jpg", line)
    shutil.rmtree(re.search(r"delete (\S+)", line)[1])
    prepare()
    assert read_tree("dataset/training") == read_tree("photos/train")


OVERLAPS = [
    ("photos", "./photos/"),
    # one folder on macOS
    ("photos", "Photos"),
    ("photos", "photos/prepared"),
    ("photos/training", "photos"),
    ("photos", "link"),
    ("link", "photos/prepared"),
    (".", "dataset"),
    ("photos", "."),
]


@pytest.mark.parametrize(("data", "base"), OVERLAPS)
def test_copies_that_would_mix_with_the_photographs_are_refused(data, base, capsys):
    draw_photos()
    for split in SPLITS:
        draw_photos(f"photos/{split}")
    os.symlink("photos", "link")
    before = read_tree(".")
    config.DATA_PATH = data
    set_base_path(base)
    assert "BASE_PATH" in fail(capsys)
    assert read_tree(".") == before


@pytest.mark.parametrize("base", ["photos2", "photo", "work/photos"])
def test_folders_whose_names_begin_alike_do_not_mix(base):
    draw_photos()
    set_base_path(base)
    prepare()
    assert len(read_tree(base)) == 21


def test_long_and_undecodable_names_are_copied_and_listed():
    config.CLASSES[0] = ECLAIR
    draw_photos(names=config.CLASSES)
    for name in ("n" * 251 + ".jpg", "ü" * 125 + ".jpg", os.fsdecode(b"\xff.jpg")):
        draw_image(Path("photos/ribs", name), 3, len(name), (16, 12))
    Path("photos", os.fsdecode(b"ribs/\xfe.jpg")).write_bytes(b"?")
    cli.run(lambda: prepare("--skip-bad"), advice="")
    assert len(read_copies()) == 24
    assert b"photos/ribs/\xfe.jpg: " in Path(PROBLEMS_PATH).read_bytes()


@pytest.mark.parametrize("base", ["dataset", "./dataset"])
def test_a_second_run_takes_what_is_new_or_changed_through_links_and_leaves_no_litter(base, capsys):
    draw_splits()
    set_base_path(base)
    prepare()
    draw_image("disk/new.jpg", 0, 1)
    os.symlink("../../../disk/new.jpg", "photos/train/pie/new.jpg")
    draw_image("photos/train/pie/1.jpg", 0, 2)
    prepare()
    for split, name in zip(SPLITS, ("train", "val", "test"), strict=True):
        assert read_tree(f"dataset/{split}") == read_tree(f"photos/{name}")
    # a copy, not a link, which would end with the other disk
    assert not os.path.islink("dataset/training/pie/new.jpg")
    capsys.readouterr()
    Path("dataset/training/pie/._0.jpg").touch()
    prepare()
    # as many as training reads
    assert f"copied to {config.TRAIN}: 10..." in capsys.readouterr().out


@pytest.mark.parametrize("moment", [0, 1, 20])
def test_a_copy_killed_in_the_middle_of_a_file_leaves_no_half_image(moment, monkeypatch):
    draw_photos()
    passed = []

    def copy_half(source, target):
        data = Path(source).read_bytes()
        Path(target).write_bytes(data[: len(data) // 2] if len(passed) == moment else data)
        if len(passed) == moment:
            raise KeyboardInterrupt
        passed.append(source)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copyfile", copy_half)
        prepare()
    copies = [path.read_bytes() for path in Path("dataset").rglob("*.jpg")]
    assert len(copies) == moment
    assert set(copies) <= set(read_tree("photos").values())
    # the same command goes on
    prepare()
    assert set(read_copies().values()) == set(read_tree("photos").values())


def test_two_prepares_at_once_never_give_an_image_the_bytes_of_another(monkeypatch):
    draw_splits()
    context = multiprocessing.get_context("fork")
    (barrier, copyfile) = (context.Barrier(2), shutil.copyfile)

    def copy_together(source, target):
        # both are at work on an image before either is done with it
        copyfile(source, target)
        barrier.wait(20)

    monkeypatch.setattr(shutil, "copyfile", copy_together)
    processes = []
    for name in ("0.jpg", "1.jpg"):
        # one is an image ahead of the other
        arguments = ("photos/train", "dataset/training", {f"photos/train/pie/{name}"})
        processes.append(context.Process(target=prepare_dataset.copy_images, args=arguments))
        processes[-1].start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert read_tree("dataset/training") == read_tree("photos/train")


def test_the_sample_is_drawn_once_and_never_over_photographs(monkeypatch, capsys):
    monkeypatch.setattr(sample_dataset, "SAMPLE_COUNTS", dict.fromkeys(SPLITS, 1))
    monkeypatch.setattr(sample_dataset, "DISHES", dict(list(sample_dataset.DISHES.items())[:2]))
    (config.DATA_PATH, config.CLASSES) = ("sample", ["Bread", "Dairy_product"])
    prepare("--sample")
    assert len(read_tree("dataset")) == 6
    draw_image("sample/training/0_0.jpg", 0)
    before = read_tree("sample")
    prepare("--sample")
    assert "sample exists" in capsys.readouterr().out
    assert read_tree("sample") == before
