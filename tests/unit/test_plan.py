"""The plan of the copies: class, split and name of each image, and what is wrong with others."""

import builtins
import errno
import os
from pathlib import Path
from unittest.mock import MagicMock, Mock

import pytest
from helpers import CLASSES, draw_image

import prepare_dataset
from pyimagesearch import config
from pyimagesearch.support import dataset_checks, splits
from pyimagesearch.support import plan as plan_module
from pyimagesearch.support.copies import normalize_path
from pyimagesearch.support.errors import UserError
from pyimagesearch.support.files import digest_file
from pyimagesearch.support.plan import (
    Photograph,
    Plan,
    leave_out_clashes,
    plan_copies,
    plan_folders,
)
from pyimagesearch.support.splits import assign_splits, find_splits

# of what was copied before: nothing
NO_RECORD = {"SEED": None, "copies": {}, "copying": {}}


def plan_names(*paths):
    """Plan images at these paths under photos/, of which only the names count; return the Plan."""
    for path in paths:
        path = Path("photos", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    plan = Plan(["photos"] * 3, [], {}, {}, NO_RECORD)
    plan_folders(plan, prepare_dataset.read_label)
    return plan


@pytest.mark.parametrize("name", "11_0.jpg -1_0.jpg 1.5_0.jpg _0.jpg photo.jpg 3.jpg".split())
def test_a_name_without_a_class_index_is_said_with_the_indices_there_are(name):
    plan = plan_names("0_0.jpg", name)
    assert [photograph.name for photograph in plan.photographs] == ["0_0.jpg"]
    ((path, text),) = plan.problems.items()
    assert path == os.path.join("photos", name)
    assert "name does not begin with a class index from 0 to 10 and _" in text


def test_the_class_index_in_a_name_is_its_label():
    plan = plan_names("0_0.jpg", "10_7.jpg", "6_0_1.jpg")
    labels = {photograph.name: photograph.label for photograph in plan.photographs}
    expected = {"0_0.jpg": "Bread", "10_7.jpg": "Vegetable/Fruit", "6_0_1.jpg": "Noodles/Pasta"}
    assert labels == expected


def test_albums_in_a_class_become_part_of_the_name_of_the_copy():
    (photograph,) = plan_names("noodles-pasta/2023/may/0.jpg").photographs
    assert (photograph.label, photograph.filename) == ("Noodles/Pasta", "2023_may_0.jpg")


@pytest.mark.parametrize("folder", "Pizza Pasta Bread2 Bréad trip/Bread Noodles".split())
def test_a_folder_that_is_no_class_is_said(folder):
    # 0_0: beside the index the folder decides
    plan = plan_names("Bread/0.jpg", f"{folder}/0_0.jpg")
    assert [photograph.label for photograph in plan.photographs] == ["Bread"]
    ((path, text),) = plan.problems.items()
    assert path == os.path.join("photos", folder, "0_0.jpg")
    assert "folder is not in CLASSES of config.py" in text


def test_a_name_is_no_class_index_beside_class_folders():
    plan = plan_names("Bread/0.jpg", "0_0.jpg")
    assert plan.problems == {"photos/0_0.jpg": "in no class folder; move it"}


@pytest.mark.parametrize("folder", "seg_train Test validation-set".split())
def test_a_folder_that_is_named_like_a_split_is_not_offered_as_a_class(folder, capsys):
    plan = plan_names("Bread/0.jpg", "Pizza/1.jpg", f"{folder}/2.jpg", f"{folder}/Bread/3.jpg")
    assert "CLASSES = ['Bread', 'Pizza']" in capsys.readouterr().out
    text = "in no class folder, but in one that is named like a split; move it"
    for name in ("2.jpg", "Bread/3.jpg"):
        assert plan.problems[f"photos/{folder}/{name}"] == text


@pytest.mark.parametrize("folders", ["train val", "val test", "test train"])
def test_where_one_split_has_class_folders_loose_images_of_another_are_of_no_class(folders):
    (sorted_, flat) = folders.split()
    for path in (f"{sorted_}/Bread/0.jpg", f"{flat}/0_000.jpg", f"{flat}/lunch.jpg"):
        Path("photos", path).parent.mkdir(parents=True, exist_ok=True)
        Path("photos", path).touch()
    roots = [os.path.join("photos", name) for name in ("train", "val", "test")]
    for root in roots:
        os.makedirs(root, exist_ok=True)
    plan = Plan(roots, [], {}, {}, NO_RECORD)
    plan_folders(plan, prepare_dataset.read_label)
    assert [photograph.label for photograph in plan.photographs] == ["Bread"]
    text = "in no class folder; move it"
    assert plan.problems == dict.fromkeys(
        [f"photos/{flat}/0_000.jpg", f"photos/{flat}/lunch.jpg"], text
    )


def test_a_folder_of_no_class_in_one_split_makes_no_name_of_another_meaningless():
    for path in ("train/0_0.jpg", "test/1_0.jpg", "test/misc/1_1.jpg"):
        Path("photos", path).parent.mkdir(parents=True, exist_ok=True)
        Path("photos", path).touch()
    plan = Plan(["photos/train", "photos/train", "photos/test"], [], {}, {}, NO_RECORD)
    plan_folders(plan, prepare_dataset.read_label)
    assert [photograph.label for photograph in plan.photographs] == ["Bread", "Dairy_product"]
    assert list(plan.problems) == ["photos/test/misc/1_1.jpg"]


@pytest.mark.parametrize(
    "names", [("training", "validation", "evaluation"), ("Train", "val", "test")]
)
def test_the_folders_of_the_splits_are_found_by_their_names(names):
    for name in (*names, "notes"):
        os.makedirs(os.path.join("Food-11", name))
    assert find_splits() == [os.path.join("Food-11", name) for name in names]


def test_a_split_that_is_not_there_is_in_the_training_folder():
    os.makedirs("Food-11/train")
    os.makedirs("Food-11/test")
    assert find_splits() == ["Food-11/train", "Food-11/train", "Food-11/test"]


def test_a_class_may_be_named_like_a_split_and_splits_need_training_images():
    os.makedirs("Food-11/test")
    with pytest.raises(UserError, match="no folder of training images"):
        find_splits()
    config.CLASSES = ["Test", "Bread"]
    assert find_splits() == ["Food-11"] * 3


KAGGLE = [
    # both folders of a zip twice, or one of them; images that are of no class beside them
    ("seg_train/seg_train/forest seg_test/seg_test/forest seg_pred/seg_pred", 0),
    ("training/training/n0 validation/validation/n0", 1),
    ("training_set/training_set/cats test_set/cats", 2),
    ("train/cats Test/Test/cats", 3),
    # beside what a Mac packed, or something else
    ("dataset/train/cats dataset/validation-set/cats __MACOSX/dataset/train/cats", 4),
    ("dataset/training/cats dataset/test/cats docs/figures", 5),
    ("chest/chest/train chest/__MACOSX/chest chest/train/cats chest/test/cats", 6),
    # no splits
    ("raw-img/cane raw-img/gatto", 7),
    ("Images/Images/cane Images/Images/gatto", 8),
]
FOUND = [
    ("seg_train/seg_train", "seg_train/seg_train", "seg_test/seg_test"),
    ("training/training", "validation/validation", "training/training"),
    ("training_set/training_set", "training_set/training_set", "test_set"),
    ("train", "train", "Test/Test"),
    ("dataset/train", "dataset/validation-set", "dataset/train"),
    ("dataset/training", "dataset/training", "dataset/test"),
    ("chest/train", "chest/train", "chest/test"),
    ("raw-img",) * 3,
    ("Images/Images",) * 3,
]


@pytest.mark.parametrize(("folders", "index"), KAGGLE)
@pytest.mark.parametrize("areKnown", [True, False])
def test_folders_that_only_wrap_others_are_looked_through(folders, index, areKnown):
    if areKnown:
        config.CLASSES = ["forest", "n0", "cats", "Cane/Lupo", "gatto"]
    for folder in folders.split():
        draw_image(f"Food-11/{folder}/1.jpg", 0)
        # a class seldom comes alone
        if areKnown or folder.endswith("_pred"):
            continue
        draw_image(f"Food-11/{os.path.dirname(folder)}/zebras/1.jpg", 0)
    Path("Food-11/labels.csv").touch()
    assert find_splits() == [os.path.join("Food-11", folder) for folder in FOUND[index]]


def test_classes_albums_and_images_are_not_looked_through():
    draw_image("Food-11/pie/1.jpg", 0)
    assert find_splits() == ["Food-11"] * 3
    draw_image("Food-11/pie/2023/1.jpg", 0)
    assert find_splits() == ["Food-11"] * 3
    # images that lie in no folder
    os.remove("Food-11/pie/1.jpg")
    draw_image("Food-11/1.jpg", 0)
    assert find_splits() == ["Food-11"] * 3
    os.remove("Food-11/1.jpg")
    for classes in (["pie", "ribs"], ["Pie/Tart", "ribs"]):
        config.CLASSES = classes
        assert find_splits() == ["Food-11"] * 3


def test_images_in_a_folder_that_a_zip_holds_twice_are_in_the_inner_one():
    draw_image("Food-11/training/training/0_0.jpg", 0)
    draw_image("Food-11/test/Test/0_0.jpg", 0)
    train = "Food-11/training/training"
    assert find_splits() == [train, train, "Food-11/test/Test"]


def test_a_word_in_the_name_of_a_folder_says_its_split_only_where_no_class_is_beside_it():
    for name in ("seg_train", "detest", "contest 2", "train_and_test", "pretrained", "test.set"):
        os.makedirs(os.path.join("Food-11", name))
    assert find_splits() == ["Food-11/seg_train", "Food-11/seg_train", "Food-11/test.set"]
    # the plain name before others
    os.makedirs("Food-11/test")
    assert find_splits()[2] == "Food-11/test"
    os.rmdir("Food-11/test")
    config.CLASSES = ["contest 2", "Bread"]
    assert find_splits() == ["Food-11"] * 3


def test_two_folders_for_one_split_are_refused_with_both():
    for name in ("train_big", "train_small", "test"):
        os.makedirs(os.path.join("Food-11", name))
    with pytest.raises(UserError, match="train_big and .*train_small are both .*rename the right"):
        find_splits()
    os.makedirs("Food-11/train")
    assert find_splits()[0] == "Food-11/train"


def test_two_folders_with_splits_in_them_are_refused_with_both():
    for fold in ("fold 1", "fold 2"):
        for name in ("train/pie", "test/pie"):
            os.makedirs(os.path.join("Food-11", fold, name))
    with pytest.raises(UserError, match="fold 1 and Food-11/fold 2 both have .*set DATA_PATH"):
        find_splits()


def split(names, copies=(), rootDirs=("photos",) * 3, label="Bread", record=NO_RECORD):
    """Split photographs of these names in a class of the training folder; return {name: split}.
    copies: paths of the copies that are there. record: of what was copied before."""
    photographs = []
    for name in names:
        path = os.path.join(rootDirs[0], label, name)
        photographs.append(Photograph(path, rootDirs[0], label, name))
    paths = {normalize_path(path): path for path in copies}
    assign_splits(Plan(list(rootDirs), photographs, {}, paths, record))
    return {photograph.name: photograph.destiDir for photograph in photographs}


def make_names(count):
    return [f"{number}.jpg" for number in range(count)]


def count_splits(found):
    """Return how many photographs there are in TRAIN, VAL and TEST."""
    places = list(found.values())
    return [places.count(config.TRAIN), places.count(config.VAL), places.count(config.TEST)]


def test_about_fifteen_percent_are_held_out_for_each_split():
    found = split(make_names(2000))
    (numTrain, numVal, numTest) = count_splits(found)
    # three standard deviations are 48
    assert 252 <= numVal <= 348
    assert 252 <= numTest <= 348
    assert numTrain + numVal + numTest == 2000


@pytest.mark.parametrize(
    ("rootDirs", "heldOut"),
    [(("train", "train", "test"), "VAL"), (("train", "val", "train"), "TEST")],
)
def test_what_is_held_out_for_a_split_does_not_depend_on_whether_the_other_has_a_folder(
    rootDirs, heldOut
):
    destiDir = getattr(config, heldOut)
    both = split(make_names(200))
    alone = split(make_names(200), rootDirs=rootDirs)
    for name, place in both.items():
        assert alone[name] == (destiDir if place == destiDir else config.TRAIN)


def test_the_split_is_the_same_again_and_another_for_another_seed():
    first = split(make_names(200))
    assert split(make_names(200)) == first
    config.SEED += 1
    other = split(make_names(200))
    held = {name for name, place in first.items() if place != config.TRAIN}
    heldNow = {name for name, place in other.items() if place != config.TRAIN}
    # 60 of 200 each, of which about 18 by chance in both
    assert len(held & heldNow) < 0.6 * len(held)


def test_photographs_that_come_or_go_move_no_other_one():
    names = make_names(200)
    first = split(names)
    more = split([f"new {number}.jpg" for number in range(100)] + names)
    assert {name: more[name] for name in names} == first
    fewer = split(names[::3])
    assert fewer == {name: first[name] for name in names[::3]}
    # in another order too
    assert split(names[::-1]) == first


def test_a_photograph_that_is_moved_to_another_class_stays_in_its_split():
    names = make_names(200)
    assert split(names, label="Egg") == split(names, label="Bread")


def test_albums_of_a_class_with_the_same_names_are_split_apart():
    names = make_names(100)
    one = split([f"one/{name}" for name in names])
    two = split([f"two/{name}" for name in names])
    assert list(one.values()) != list(two.values())


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("count", [3, 4])
def test_each_split_has_a_photograph_of_a_class_of_three_or_more(count, seed):
    config.SEED = seed
    counts = count_splits(split(make_names(count)))
    assert min(counts) >= 1
    # whether or not the split has been copied once
    found = split(make_names(count))
    copies = [os.path.join(place, "Bread", name) for name, place in found.items()]
    assert split(make_names(count), copies) == found


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_with_too_few_photographs_leaves_a_split_empty(count):
    assert sum(count_splits(split(make_names(count)))) == count


def test_what_was_copied_stays_in_its_split():
    names = make_names(100)
    first = split(names)
    inTraining = [name for name in names if first[name] == config.TRAIN]
    (one, other, upper) = inTraining[:3]
    heldOut = [name for name in names if first[name] == config.VAL][0]
    copies = [
        os.path.join(config.VAL, "Bread", one),
        os.path.join(config.TEST, "Bread", other),
        # on a disk that is case-insensitive
        os.path.join(config.TEST, "BREAD", upper.upper()),
        os.path.join(config.TRAIN, "Bread", heldOut),
        # which is that of another class
        os.path.join(config.VAL, "Egg", inTraining[3]),
    ]
    found = split(names, copies)
    changes = {one: config.VAL, other: config.TEST, upper: config.TEST, heldOut: config.TRAIN}
    assert found == first | changes


def test_a_copy_in_a_split_with_a_folder_of_its_own_keeps_no_photograph_there():
    rootDirs = ("train", "train", "test")
    first = split(make_names(50), rootDirs=rootDirs)
    copies = [os.path.join(config.TEST, "Bread", name) for name in first]
    assert split(make_names(50), copies, rootDirs) == first


def test_a_copied_photograph_is_not_moved_into_a_split_that_has_none():
    copies = [os.path.join(config.TRAIN, "Bread", name) for name in make_names(3)]
    assert set(split(make_names(3), copies).values()) == {config.TRAIN}
    # but a new one is
    found = split([*make_names(3), "new.jpg", "newer.jpg"], copies)
    assert {found["new.jpg"], found["newer.jpg"]} == {config.VAL, config.TEST}


def test_another_seed_than_that_of_the_copies_is_refused_with_both():
    record = NO_RECORD | {"SEED": 7}
    copies = [os.path.join(config.TRAIN, "Bread", "0.jpg")]
    with pytest.raises(UserError, match="split with SEED 7, not 42; .*BASE_PATH") as caught:
        split(make_names(3), copies, record=record)
    assert config.BASE_PATH in str(caught.value)
    # where nothing is held out by SEED, or nothing was copied, it moves nothing
    split(make_names(3), copies, rootDirs=("train", "val", "test"), record=record)
    split(make_names(3), record=record)
    # and copies without a record may be of any
    split(make_names(3), copies)
    config.SEED = 7
    split(make_names(3), copies, record=record)


def test_a_split_that_was_filled_stays_as_it_is_when_photographs_come():
    names = make_names(3)
    for seed in range(200):
        config.SEED = seed
        first = split(names)
        copies = [os.path.join(place, "Bread", name) for name, place in first.items()]
        found = split([*names, *(f"new {number}.jpg" for number in range(5))], copies)
        assert {name: found[name] for name in names} == first, f"SEED {seed}"


def test_splits_of_folders_of_their_own_stay_what_they_are():
    photographs = []
    for root in ("train", "val", "test"):
        photographs += [Photograph(f"{root}/Egg/{name}", root, "Egg", name) for name in "abcdef"]
    assign_splits(Plan(["train", "val", "test"], photographs, {}, {}, NO_RECORD))
    places = [photograph.destiDir for photograph in photographs]
    assert places == [config.TRAIN] * 6 + [config.VAL] * 6 + [config.TEST] * 6


def test_a_number_for_each_photograph_follows_from_seed_and_name_alone():
    photograph = Photograph("photos/Egg/a.jpg", "photos", "Egg", "a.jpg")
    moved = Photograph("other/Soup/a.jpg", "other", "Soup", "a.jpg")
    number = splits.draw_number(photograph)
    assert 0 <= number < 1
    assert splits.draw_number(moved) == number
    config.SEED += 1
    assert splits.draw_number(photograph) != number


def test_the_number_of_a_photograph_is_the_same_on_any_machine(monkeypatch):
    def draw(name):
        return splits.draw_number(Photograph("photos/a.jpg", "photos", "Egg", name))

    number = draw("été/crème.jpg")
    # as a Mac stores it
    assert draw("e\u0301te\u0301/cre\u0300me.jpg") == number
    assert draw("ete/creme.jpg") != number
    # as Windows separates folders
    monkeypatch.setattr(os, "sep", "\\")
    assert draw("été\\crème.jpg") == number


def test_the_place_of_a_copy_is_its_path_as_paths_are_compared():
    photograph = Photograph("photos/Egg/May/A.jpg", "photos", "Noodles/Pasta", "May/A.jpg")
    expected = os.path.join("dataset", "training", "noodles", "pasta", "may_a.jpg")
    assert photograph.get_place("dataset/./Training") == expected
    photograph.destiDir = config.VAL
    assert photograph.place == photograph.get_place(config.VAL)
    assert photograph.place == expected.replace("training", "validation")


def test_a_photograph_is_copied_if_the_bytes_of_its_copy_are_its_own():
    photograph = Photograph("a.jpg", "photos", "Egg", "a.jpg", config.TRAIN, digest="1")
    assert not photograph.isCopied
    photograph.copyDigest = "2"
    assert not photograph.isCopied
    photograph.copyDigest = "1"
    assert photograph.isCopied


def leave_out(*names):
    """Leave out clashes of photographs of these names in a class; return the Plan."""
    photographs = [Photograph(f"photos/Egg/{name}", "photos", "Egg", name) for name in names]
    plan = Plan(["photos"] * 3, photographs, {}, {}, NO_RECORD)
    leave_out_clashes(plan)
    return plan


@pytest.mark.parametrize("name", ["a/1.jpg", "A_1.JPG"])
def test_a_photograph_whose_copy_would_overwrite_an_earlier_one_is_a_problem(name):
    plan = leave_out("a_1.jpg", "b_1.jpg", name)
    assert [photograph.name for photograph in plan.photographs] == ["a_1.jpg", "b_1.jpg"]
    text = "same name and class as another image (photos/Egg/a_1.jpg); rename one"
    assert plan.problems == {f"photos/Egg/{name}": text}


@pytest.mark.parametrize(("letter", "size"), [("a", 1), ("é", 2)])
def test_a_name_that_is_too_long_with_its_album_is_a_problem(letter, size):
    # 6 bytes are the album's and the ending's
    longest = letter * ((255 - 6) // size)
    plan = leave_out(f"m/{longest}.jpg", f"m/{longest}{letter}.jpg", f"{longest}a.jpg")
    assert [photograph.name for photograph in plan.photographs] == [
        f"m/{longest}.jpg",
        f"{longest}a.jpg",
    ]
    ((path, text),) = plan.problems.items()
    assert path == f"photos/Egg/m/{longest}{letter}.jpg"
    assert "with its album the name is too long for a file" in text


def plan_class_folders():
    """Plan drawn class folders at DATA_PATH."""
    config.CLASSES = list(CLASSES)
    return plan_copies(prepare_dataset.read_label)


def draw_photographs():
    for classIndex, name in enumerate(CLASSES):
        for number in range(4):
            draw_image(Path(config.DATA_PATH, name, f"{number}.jpg"), classIndex * 3, number)


def test_the_plan_holds_each_image_once_with_the_split_of_its_copy():
    draw_photographs()
    plan = plan_class_folders()
    assert plan.problems == {}
    found = []
    for destiDir in (config.TRAIN, config.VAL, config.TEST):
        images = plan.list_images(config.DATA_PATH, destiDir)
        assert {image.label for image in images} == set(CLASSES)
        assert [image.path for image in images] == sorted(image.path for image in images)
        found += images
    assert len(found) == 12
    assert len({image.path for image in found}) == 12


def test_each_photograph_is_opened_once_and_its_digest_is_that_of_its_bytes(monkeypatch):
    draw_photographs()
    opened = []
    opener = builtins.open

    def open_and_count(path, *args, **options):
        opened.append(path)
        return opener(path, *args, **options)

    # PIL and hashlib open files by that name too
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", open_and_count)
        plan = plan_class_folders()
    paths = [photograph.path for photograph in plan.photographs]
    assert sorted(path for path in opened if str(path).endswith(".jpg")) == paths
    for photograph in plan.photographs:
        assert photograph.digest == digest_file(photograph.path)


def test_a_disk_that_fails_in_the_middle_of_a_file_is_said_with_its_path(monkeypatch):
    draw_photographs()
    file = MagicMock()
    file.__enter__.return_value.read.side_effect = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(plan_module, "open", Mock(return_value=file), raising=False)
    with pytest.raises(OSError, match="Input/output error: 'Food-11/Bread/0.jpg'"):
        plan_class_folders()


def test_images_that_cannot_be_read_or_would_be_overwritten_are_problems_of_the_plan():
    draw_photographs()
    draw_image("Food-11/Egg/a/1.jpg", 1, seed=20)
    draw_image("Food-11/Egg/a_1.jpg", 1, seed=21)
    Path("Food-11/Soup/broken.jpg").write_bytes(b"no image")
    plan = plan_class_folders()
    (broken, double) = sorted(plan.problems.items(), key=lambda item: "same name" in item[1])
    assert broken[0] == "Food-11/Soup/broken.jpg"
    assert broken[1].startswith("cannot be read as an image")
    assert double[0] == "Food-11/Egg/a_1.jpg"
    assert "same name and class as another image (Food-11/Egg/a/1.jpg)" in double[1]
    assert len(plan.photographs) == 13


@pytest.mark.parametrize("key", ["copies", "copying", None])
def test_a_photograph_without_a_copy_is_no_leftover_and_a_copy_without_one_is(key):
    draw_photographs()
    plan = plan_class_folders()
    image = plan.list_images(config.DATA_PATH, config.VAL)[0]
    # the first of two copies counts
    right = Path(config.TRAIN, image.label, image.filename)
    wrong = Path(config.VAL, image.label, image.filename)
    foreign = Path(config.TRAIN, "Egg", "foreign.jpg")
    for path in (right, wrong):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Path(image.path).read_bytes())
    draw_image(foreign, 5, seed=99)
    plan = plan_class_folders()
    if key:
        plan.record[key][normalize_path(wrong)] = digest_file(wrong)
    # of other bytes that were copied there
    plan.record["copies"][normalize_path(foreign)] = digest_file(wrong)
    problems = dataset_checks.find_leftovers(plan)
    assert set(problems) == {str(wrong), str(foreign)}
    # only what is known to be a copy may be deleted
    if key:
        text = f"a copy of an image that belongs elsewhere now ({image.path}); delete the copy"
    else:
        text = f"not copied by prepare_dataset.py, and the same image as another ({image.path})"
        text += "; move it away from here"
    assert problems[str(wrong)] == text
    assert "no copy of an image in Food-11" in problems[str(foreign)]
    assert "delete" not in problems[str(foreign)]


def test_the_plan_knows_what_lies_where_a_copy_belongs():
    draw_photographs()
    (first, edited, missing) = plan_class_folders().photographs[:3]
    for image in (first, edited):
        path = Path(image.destiDir, image.label, image.filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Path(image.path).read_bytes())
    draw_image(edited.path, 5, seed=99)
    plan = plan_class_folders()
    found = {image.path: image for image in plan.photographs}
    assert found[first.path].isCopied
    assert found[edited.path].copyDigest == edited.digest
    assert not found[edited.path].isCopied
    assert found[missing.path].copyDigest is None
    assert plan.copies.keys() == {first.place, edited.place}
    # each stays in its split
    for image in (first, edited, missing):
        assert found[image.path].destiDir == image.destiDir


def find_foreign(found, recorded=None):
    """Look for foreign files where a photograph with the digest "now" is planned, and what lies
    where its copy belongs has the digest found; recorded: that of its last copy."""
    photograph = Photograph("photos/Egg/a.jpg", "photos", "Egg", "a.jpg", config.VAL, "now", found)
    copies = {photograph.place: "dataset/validation/Egg/A.jpg"} if found else {}
    record = NO_RECORD | {"copies": {photograph.place: recorded} if recorded else {}}
    plan = Plan(["photos"] * 3, [photograph], {}, copies, record)
    return dataset_checks.find_foreign_files(plan)


def test_a_file_that_prepare_did_not_copy_is_foreign_where_a_copy_would_overwrite_it():
    for problems in (find_foreign("theirs"), find_foreign("theirs", recorded="before")):
        ((path, text),) = problems.items()
        # as it is spelled on the disk
        assert path == "dataset/validation/Egg/A.jpg"
        assert "not copied from Food-11, and photos/Egg/a.jpg would overwrite it" in text


def test_copies_and_the_old_copy_of_an_edited_original_are_no_foreign_files():
    assert find_foreign(None) == {}
    assert find_foreign("now") == {}
    assert find_foreign("before", recorded="before") == {}


@pytest.mark.parametrize("base", [".", "data/.."])
def test_to_a_folder_outside_base_path_the_setting_is_the_advice_and_else_a_move(base):
    config.TEST = "mytest"
    config.VAL = os.path.join(base, "dataset", "validation")
    advice = dataset_checks.advise("mytest/pie/1.jpg", "move it")
    assert advice == "set TEST in config.py to another folder while you prepare"
    for path in ("dataset/training/pie/1.jpg", f"{config.VAL}/pie/1.jpg"):
        assert dataset_checks.advise(path, "move it") == "move it"
    # which only begins alike
    config.TEST = "dataset2/evaluation"
    assert "set TEST" in dataset_checks.advise("dataset2/evaluation/pie/1.jpg", "move it")


def test_images_with_the_same_bytes_in_two_classes_or_splits_are_found():
    photographs = []
    for path, label, destiDir, digest in (
        ("a", "Egg", config.TRAIN, "1"),
        ("b", "Egg", config.TRAIN, "1"),
        ("c", "Egg", config.VAL, "2"),
        ("d", "Egg", config.TRAIN, "2"),
        ("e", "Soup", config.TRAIN, "3"),
        ("f", "Egg", config.TRAIN, "3"),
        ("g", "Egg", config.TRAIN, "4"),
    ):
        photographs.append(Photograph(path, "photos", label, path, destiDir, digest))
    problems = dataset_checks.find_same_images(photographs)
    assert set(problems) == set("cdef")
    assert problems["c"].startswith("also in another class or split (d)")
    assert "test scores will be too high" in problems["c"]


def test_a_line_for_each_folder_and_kind_of_problem():
    problems = {
        "a/1.jpg": "same name (a/0.jpg); rename one",
        "a/2.jpg": "same name (a/9.jpg); rename one",
        "a/3.jpg": "in no class folder; move it",
        "b/1.jpg": "same name (b/0.jpg); rename one",
    }
    assert dataset_checks.group_problems(problems) == [
        "a: 2 images, such as 1.jpg: same name (a/0.jpg); rename one",
        "a/3.jpg: in no class folder; move it",
        "b/1.jpg: same name (b/0.jpg); rename one",
    ]
