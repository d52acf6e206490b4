"""Step 1 on folders, files and names as people have them."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import unicodedata
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers import DEFAULTS, SPLITS, Process, call, draw_food11, draw_image, read_tree
from PIL import Image

import prepare_dataset
from pyimagesearch import config
from pyimagesearch.support import sample_dataset, script
from pyimagesearch.support.dataset_checks import PROBLEMS_PATH
from pyimagesearch.support.plan import plan_copies

NAMES = ("pie", "ribs", "tartare")
# in a zip from Windows
ECLAIR = os.fsdecode(b"\xe9clair")


def prepare(*flags):
    call(prepare_dataset.main, *flags)


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
    copies = {}
    for split in SPLITS:
        found = read_tree(f"dataset/{split}")
        assert not found.keys() & copies.keys()
        copies |= found
    return copies


class ListedBackwards:
    """What os.scandir() gives, by the names from the last to the first."""

    scandir = os.scandir

    def __init__(self, path):
        with ListedBackwards.scandir(path) as entries:
            self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    def __enter__(self):
        return self.entries

    def __exit__(self, *error):
        pass

    def __next__(self):
        return next(self.entries)


def find_copy(name):
    """Return the path of the one copy of a photograph, from its path in TRAIN, VAL or TEST."""
    (path,) = Path("dataset").glob(f"*/{name}")
    return path


def stat_copies():
    """Return the inode and time of each copy by its path: other ones for a file written anew."""
    stats = {}
    for name in read_tree("dataset"):
        stat = Path("dataset", name).stat()
        stats[name] = (stat.st_ino, stat.st_mtime_ns)
    return stats


def fail(capsys, *flags):
    """Prepare, which must find something wrong and copy nothing; return all that it says."""
    before = read_tree("dataset")
    with pytest.raises(SystemExit) as caught:
        script.run(lambda: prepare(*flags), advice="")
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
        expected = {}
        for name, data in read_tree(f"Food-11/{split}").items():
            (index, _) = name.split("_")
            expected[f"{config.CLASSES[int(index)]}/{name}"] = data
        assert read_tree(f"dataset/{split}") == expected
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
def test_class_folders_as_people_name_them_are_their_class_and_albums_become_part_of_names(form):
    label = unicodedata.normalize(form, "Crème brûlée")
    config.CLASSES = ["Bread", "Fried_food", "Noodles/Pasta", "Vegetable/Fruit", label]
    # where the copies of each folder begin
    targets = {
        "BREAD": "Bread/",
        "Bread/2023": "Bread/2023_",
        "Bread/2024/Egg": "Bread/2024_Egg_",
        "fried food": "Fried_food/",
        "Fried-Food/trip": "Fried_food/trip_",
        "Noodles/Pasta": "Noodles/Pasta/",
        "Noodles-Pasta/album": "Noodles/Pasta/album_",
        "noodles_pasta/trip": "Noodles/Pasta/trip_",
        "Vegetable_Fruit": "Vegetable/Fruit/",
        unicodedata.normalize("NFC", "Crème brûlée"): f"{label}/",
        unicodedata.normalize("NFD", "Crème brûlée") + "/a": f"{label}/a_",
    }
    draw_photos(counts=[3] * len(targets), names=targets)
    prepare()
    source = read_tree("photos")
    expected = {}
    for folder, target in targets.items():
        for number in range(3):
            expected[f"{target}{number}.jpg"] = source[f"{folder}/{number}.jpg"]
    assert read_copies() == expected


def test_a_photograph_named_like_one_in_an_album_is_listed_and_not_overwritten(capsys):
    draw_photos()
    draw_image("photos/pie/2023/1.jpg", 0, 1)
    draw_image("photos/pie/2023_1.jpg", 0, 2)
    text = fail(capsys)
    assert "photos/pie/2023_1.jpg: same name" in text and "photos/pie/2023/1.jpg" in text
    prepare("--skip-bad")
    assert read_copies()["pie/2023_1.jpg"] == Path("photos/pie/2023/1.jpg").read_bytes()


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
    draw_photos(root, (150, 7, 3))
    for name in given[1:]:
        draw_photos(f"photos/{name}", (2, 2, 2))
    prepare()
    out = capsys.readouterr().out
    for split in heldOut:
        counts = [len(os.listdir(f"dataset/{split}/{name}")) for name in NAMES]
        # about 15 %, at least one: three standard deviations of 150 are 13
        assert 9 <= counts[0] <= 36
        assert 1 <= counts[1] <= 5
        assert counts[2] == 1
        assert f"held out of {root} for dataset/{split}: {sum(counts)} images" in out
    before = read_tree("dataset")
    # each image once
    assert sorted(before.values()) == sorted(read_tree("photos").values())
    # a disk may list its files in any order
    shutil.rmtree("dataset")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", ListedBackwards)
        prepare()
    assert read_tree("dataset") == before
    shutil.rmtree("dataset")
    prepare("--seed", "7")
    assert set(read_tree("dataset")) != set(before)


@pytest.mark.parametrize("isEmpty", [False, True])
def test_no_photographs_is_one_line_with_the_ways_on(isEmpty, capsys):
    if isEmpty:
        os.mkdir("photos")
    text = fail(capsys)
    assert text.startswith("[ERROR] no photographs at ") and text.count("\n") == 0
    for words in (os.path.abspath("photos"), "DATA_PATH", "--sample"):
        assert words in text


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
    # a class that is none any more
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
        assert len(text.splitlines()) == 8
        (error,) = re.findall(r"^\[ERROR\] (.+)", text, re.M)
        assert error.startswith("nothing was copied; fix the problems above")
        assert ("--skip-bad" in error) == (not flags)
    problems = read_problems()
    names = [f"Food-11/training/0_1{index}.jpg" for index in range(4)]
    names += ["Food-11/validation/Pizza/0_0.jpg", "Food-11/validation/lunch.jpg"]
    names += ["dataset/training/Cake/0_0.jpg"]
    assert list(problems) == names
    assert len(set(problems.values())) == len(names)


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


@pytest.mark.parametrize("count", [2, 1, 0])
def test_a_class_with_too_few_photographs_for_each_split_is_named(count, capsys):
    draw_photos(counts=(7, 7, count))
    text = fail(capsys, "--skip-bad")
    (line,) = re.findall(r"\[INFO\] (.+): no image of tartare\b", text)
    assert len(line.split(", ")) == 3 - count


def test_loose_photographs_beside_class_folders_are_of_no_class(capsys):
    draw_photos()
    expected = read_tree("photos")
    # also where the name looks like Food-11's
    for name in ("IMG_7777.jpg", "0_5.jpg"):
        draw_image(f"photos/{name}", 0)
    text = fail(capsys)
    assert re.search("photos: 2 images.* in no class folder", text)
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
    script.run(lambda: prepare("--skip-bad"), advice="")
    assert len(read_tree("dataset")) == 21 * len(splits)


def test_the_same_photograph_in_two_classes_or_splits_is_listed_by_its_paths(capsys):
    draw_splits()
    twice = {
        # in two classes, the second time in an album
        *("train/pie/0.jpg", "train/pie/1.jpg", "train/pie/2.jpg"),
        *("train/ribs/album/0.jpg", "train/ribs/album/1.jpg", "train/ribs/album/2.jpg"),
        # in two splits
        *("train/tartare/0.jpg", "test/tartare/lunch.jpg"),
    }
    shutil.copytree("photos/train/pie", "photos/train/ribs/album")
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
    listed = read_problems()
    assert len(listed) == 9
    copies = read_tree("dataset").values()
    leftOut = set()
    for name, data in read_tree("photos").items():
        if data not in copies:
            leftOut.add(f"photos/{name}")
    assert leftOut == set(listed)
    for path, text in listed.items():
        assert re.search(r"\((.+)\)", text)[1].lower() == path.lower()


def test_a_photograph_that_is_added_alone_is_copied_and_no_other_moves(capsys):
    draw_photos(counts=(40, 9, 3))
    prepare()
    before = stat_copies()
    capsys.readouterr()
    draw_photos("more", (10, 1, 0))
    for name in read_tree("more"):
        shutil.move(f"more/{name}", f"photos/{os.path.dirname(name)}/new {os.path.basename(name)}")
    prepare()
    after = stat_copies()
    added = after.keys() - before.keys()
    assert len(added) == 11
    for name in added:
        assert "/new " in name
    for name, stat in before.items():
        assert after[name] == stat, name
    # it is no problem of any kind
    assert not os.path.exists(PROBLEMS_PATH)


def test_other_capitals_of_a_label_make_no_second_folder(capsys):
    draw_photos()
    prepare()
    config.CLASSES = [label.capitalize() for label in config.CLASSES]
    out = fail(capsys)
    for split in SPLITS:
        for label in config.CLASSES:
            folder = f"dataset/{split}/{label}"
            text = f"{folder.replace(label, label.lower())}: CLASSES in config.py spells it"
            assert f"{text} otherwise; rename it to {folder}" in out.replace(os.sep, "/")
            os.rename(folder.replace(label, label.lower()), folder)
    before = stat_copies()
    prepare()
    assert stat_copies() == before


def test_a_photograph_that_was_edited_is_copied_again_to_the_same_place():
    draw_photos()
    prepare()
    before = stat_copies()
    path = find_copy("pie/3.jpg")
    draw_image("photos/pie/3.jpg", 0, 99)
    prepare()
    assert path.read_bytes() == Path("photos/pie/3.jpg").read_bytes()
    after = stat_copies()
    changed = [name for name in after if after[name] != before[name]]
    assert changed == [path.relative_to("dataset").as_posix()]


def test_a_photograph_moved_to_its_right_class_stays_in_its_split_once_the_old_copy_is_gone(capsys):
    draw_photos()
    # wrong labels, of which one in each split is found
    draw_photos(counts=[30], names=["pie/may"])
    prepare()
    before = stat_copies()
    capsys.readouterr()
    os.mkdir("photos/ribs/may")
    stale = [min(Path("dataset", split).glob("pie/may_*")) for split in SPLITS]
    for path in stale:
        name = path.name.removeprefix("may_")
        os.rename(f"photos/pie/may/{name}", f"photos/ribs/may/{name}")
    text = fail(capsys)
    problems = read_problems()
    assert sorted(problems) == sorted(str(path) for path in stale)
    for path in stale:
        name = path.name.removeprefix("may_")
        assert str(path) in text
        assert f"(photos/ribs/may/{name}); delete the copy" in problems[str(path)]
        os.remove(path)
    prepare()
    after = stat_copies()
    gone = [Path("dataset", name) for name in before.keys() - after.keys()]
    assert sorted(gone) == sorted(stale)
    new = [Path("dataset", name) for name in after.keys() - before.keys()]
    assert sorted(new) == sorted(path.parent.parent / "ribs" / path.name for path in stale)
    # no other one is moved or copied
    for name in before.keys() & after.keys():
        assert after[name] == before[name], name


def test_the_copy_of_a_photograph_that_is_gone_may_be_the_only_one_and_is_not_to_be_deleted(capsys):
    draw_photos()
    prepare()
    capsys.readouterr()
    os.remove("photos/pie/0.jpg")
    path = find_copy("pie/0.jpg")
    text = fail(capsys)
    assert f"{path}: " in text and "move it" in text
    assert "delete" not in text
    assert list(read_problems()) == [str(path)]
    # either way of the advice leads on
    shutil.move(path, "photos/pie/0.jpg")
    prepare()
    assert find_copy("pie/0.jpg") == path


def test_photographs_of_ones_own_in_dataset_are_never_said_to_be_deleted(capsys):
    draw_photos()
    prepare()
    for name in ("own.jpg", "7.jpg"):
        draw_image(f"dataset/training/pie/{name}", 0, 99)
    draw_image("dataset/validation/cake/0.jpg", 0, 98)
    capsys.readouterr()
    text = fail(capsys)
    assert "delete" not in text
    assert re.search("dataset/training/pie: 2 images.* move it", text)
    assert re.search("dataset/validation/cake/0.jpg: .* move it", text)
    problems = read_problems()
    assert len(problems) == 3
    for line in problems.values():
        assert "move it" in line and "delete" not in line


def test_another_seed_is_refused_where_it_would_move_copies_and_counts_in_another_folder(capsys):
    draw_photos()
    prepare()
    capsys.readouterr()
    text = fail(capsys, "--seed", "7")
    assert "split with SEED 42, not 7; set SEED back, or set another BASE_PATH" in text
    prepare()
    first = set(read_copies())
    set_base_path("other")
    prepare("--seed", "7")
    assert {path.partition("/")[2] for path in read_tree("other")} == first
    assert set(read_tree("other")) != set(read_tree("dataset"))


def test_a_copy_whose_original_was_edited_is_known_also_after_a_killed_prepare(monkeypatch):
    draw_photos()
    prepare()
    for name in NAMES:
        draw_image(f"photos/{name}/3.jpg", 0, 99, (16, 12))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copyfile", Mock(side_effect=KeyboardInterrupt))
        prepare()
    prepare()
    assert sorted(read_copies().values()) == sorted(read_tree("photos").values())


@pytest.mark.parametrize("splits", [[""], ["train", "val"], ["train", "val", "test"]])
@pytest.mark.parametrize("names", [["mine 0.jpg", "mine 1.jpg"], ["0.jpg", "1.jpg"]])
def test_a_test_folder_of_ones_own_is_left_as_it_is(splits, names, capsys):
    for split in splits:
        draw_photos(f"photos/{split}")
    config.TEST = "mytest"
    for index, label in enumerate(NAMES):
        for number, name in enumerate(names):
            draw_image(Path("mytest", label, name), index * 3, 100 + number)
    before = read_tree("mytest")
    # also where a photograph in photos/ has the same name
    text = fail(capsys)
    assert read_tree("mytest") == before
    assert "delete" not in text and "mytest" in text


def test_a_photograph_put_into_dataset_by_hand_is_never_overwritten_also_if_it_was_the_same(capsys):
    draw_photos()
    prepare()
    theirs = find_copy("pie/3.jpg")
    # as if by the user: prepare has no record of it
    shutil.rmtree("dataset")
    theirs.parent.mkdir(parents=True)
    shutil.copy("photos/pie/3.jpg", theirs)
    prepare()
    draw_image("photos/pie/3.jpg", 0, 99)
    capsys.readouterr()
    text = fail(capsys)
    assert f"{theirs}: not copied from photos, and photos/pie/3.jpg would overwrite it" in text
    assert "delete" not in text
    # nor is it said to be deleted, where the photograph belongs elsewhere now
    shutil.copy(theirs, "photos/ribs/33.jpg")
    os.remove("photos/pie/3.jpg")
    text = fail(capsys)
    assert f"{theirs}: not copied by prepare_dataset.py, and the same image as another" in text
    assert "delete" not in text


def test_without_a_record_as_in_an_older_dataset_nothing_is_deleted_or_overwritten(capsys):
    draw_photos()
    prepare()
    before = stat_copies()
    os.remove("dataset/copies.json")
    # what is as it was needs no record
    prepare()
    assert stat_copies().items() >= {k: v for k, v in before.items() if k != "copies.json"}.items()
    edited = find_copy("pie/3.jpg")
    draw_image("photos/pie/3.jpg", 0, 99)
    os.rename("photos/ribs/3.jpg", "photos/tartare/33.jpg")
    capsys.readouterr()
    text = fail(capsys)
    assert set(read_problems()) == {str(edited), str(find_copy("ribs/3.jpg"))}
    assert "delete" not in text


def test_what_a_killed_prepare_has_copied_is_known_as_its_own(monkeypatch):
    draw_photos()
    copyfile = shutil.copyfile

    def copy_some(source, target):
        if source.startswith("photos/ribs"):
            raise KeyboardInterrupt
        copyfile(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copyfile", copy_some)
        prepare()
    path = next(Path("dataset").glob("*/pie/*.jpg"))
    draw_image(f"photos/pie/{path.name}", 0, 99)
    prepare()
    assert sorted(read_copies().values()) == sorted(read_tree("photos").values())


@pytest.mark.parametrize("place", ["photos", "dataset/training"])
def test_system_folders_are_no_photographs_and_no_classes(place, capsys):
    draw_photos()
    expected = read_tree("photos")
    for name in ("pie/@eaDir/0.jpg/SYNOFILE_THUMB_M.jpg", "#recycle/1.jpg", "__MACOSX/pie/2.jpg"):
        draw_image(f"{place}/{name}", 0, len(name))
    prepare()
    out = capsys.readouterr().out
    assert "CLASSES" not in out and not os.path.exists(PROBLEMS_PATH)
    assert ("passed over 3 files in system folders" in out) == (place == "photos")
    copies = read_tree("dataset")
    assert len([name for name in copies if "@" not in name and "_" not in name]) >= 21
    assert {data for data in copies.values()} >= set(expected.values())
    # nor are they counted
    (*_, total) = out.splitlines()
    assert sum(map(int, total.split()[1:])) == 21


def test_photographs_that_a_cloud_program_has_not_downloaded_are_said_and_a_class_of_them_lacks(
    capsys,
):
    draw_photos()
    for name in NAMES:
        os.rename(f"photos/{name}/2.jpg", f"photos/{name}/.2.jpg.icloud")
    prepare()
    text = "[INFO] 3 photographs in photos are not downloaded, such as photos/pie/.2.jpg.icloud: "
    assert text + "have the cloud program download them...\n" in capsys.readouterr().out
    for number in (0, 1, 3, 4, 5, 6):
        os.rename(f"photos/pie/{number}.jpg", f"photos/pie/{number}.jpg.nextcloud")
    shutil.rmtree("dataset")
    text = fail(capsys, "--skip-bad")
    assert "9 photographs in photos are not downloaded" in text
    assert "no image of pie; each class needs one" in text


def test_a_zip_that_holds_each_folder_twice_is_one_list_to_paste_and_then_copied(capsys):
    for split, count in (("seg_train", 7), ("seg_test", 3)):
        draw_photos(f"photos/{split}/{split}", [count] * 3)
    draw_image("photos/seg_pred/seg_pred/1.jpg", 0)
    draw_image("photos/__MACOSX/seg_train/pie/1.jpg", 0)
    config.CLASSES = ["Bread", "Egg"]
    text = fail(capsys)
    line = f"to take all folders in photos/seg_train/seg_train as classes: CLASSES = {list(NAMES)}"
    assert line in text
    config.CLASSES = list(NAMES)
    prepare()
    out = capsys.readouterr().out
    assert "in no split, not copied: 1, such as photos/seg_pred..." in out
    assert read_tree("dataset/evaluation") == read_tree("photos/seg_test/seg_test")
    assert len(read_tree("dataset")) == 30


def test_what_lies_beside_splits_is_said_at_each_level_that_was_looked_through(capsys):
    draw_splits(("archive/data/train", "archive/data/val", "archive/data/test/test"))
    for name in ("docs/1.jpg", "data/2.jpg", "data/extra/3.jpg", "__MACOSX/4.jpg"):
        draw_image(f"photos/archive/{name}", 0)
    prepare()
    line = "in no split, not copied: 3, such as photos/archive/data/2.jpg..."
    assert line in capsys.readouterr().out
    assert len(read_tree("dataset")) == 18


@pytest.mark.parametrize("flat", ["test", "val"])
def test_loose_images_of_a_split_are_not_labelled_by_their_names_where_another_has_classes(
    flat, capsys
):
    draw_splits()
    shutil.rmtree(f"photos/{flat}")
    for number in range(3):
        draw_image(f"photos/{flat}/{number}_000.jpg", 0, 50 + number)
    text = fail(capsys)
    assert f"photos/{flat}: 3 images, such as 0_000.jpg: in no class folder; move it" in text
    # nor does --skip-bad label them
    assert "no image of pie, ribs, tartare" in fail(capsys, "--skip-bad")


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
    script.run(lambda: prepare("--skip-bad"), advice="")
    assert len(read_copies()) == 24
    assert b"photos/ribs/\xfe.jpg: " in Path(PROBLEMS_PATH).read_bytes()


def test_a_name_that_its_album_makes_too_long_for_a_disk_ends_nothing():
    draw_photos()
    draw_image(Path("photos/ribs/2023", "n" * 251 + ".jpg"), 3, 99, (16, 12))
    prepare("--skip-bad")
    listed = read_problems() if os.path.exists(PROBLEMS_PATH) else {}
    # copied under some name, or listed
    assert len(read_copies()) + len(listed) == 22
    assert len(read_copies()) >= 21


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


def test_what_a_killed_prepare_left_unfinished_is_gone_after_the_next():
    draw_photos()
    copyfile = shutil.copyfile

    def copy_and_die(source, target):
        if len(list(Path("dataset").rglob("*.jpg"))) < 5:
            copyfile(source, target)
            return
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)

    def break_copying():
        shutil.copyfile = copy_and_die

    settings = {"DATA_PATH": "photos", "CLASSES": list(NAMES)}
    process = Process("prepare_dataset.py", settings=settings, before=break_copying)
    assert process.end().returncode == -signal.SIGKILL
    assert len(list(Path("dataset").rglob("*.partial"))) == 1
    before = stat_copies()
    prepare()
    assert list(Path("dataset").rglob("*.partial")) == []
    assert sorted(read_copies().values()) == sorted(read_tree("photos").values())
    # what was whole stays
    after = stat_copies()
    for name in before.keys() & after.keys():
        assert after[name] == before[name]


def test_two_prepares_at_once_never_give_an_image_the_bytes_of_another(monkeypatch):
    draw_splits()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    copyfile = shutil.copyfile

    def copy_together(source, target):
        # both are at work on an image before either is done with it
        copyfile(source, target)
        barrier.wait(20)

    monkeypatch.setattr(shutil, "copyfile", copy_together)
    processes = []
    for name in ("0.jpg", "1.jpg"):
        plan = plan_copies(prepare_dataset.read_label)
        # one is an image ahead of the other
        skipped = f"photos/train/pie/{name}"
        plan.photographs = [image for image in plan.photographs if image.path != skipped]
        arguments = ("photos/train", "dataset/training", plan)
        processes.append(context.Process(target=prepare_dataset.copy_images, args=arguments))
    for process in processes:
        process.start()
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
    assert "using the existing sample; no sample drawn..." in capsys.readouterr().out
    assert read_tree("sample") == before
