import inspect
import os
import re
import shutil
import sys
import zlib
from pathlib import Path

import prepare_dataset
from prepare_dataset import copy_images
from pyimagesearch import config, create_dataloaders
from pyimagesearch.cli import UserError
from pyimagesearch.dataset_checks import BAD_PATH
from pyimagesearch.sample_dataset import MARK

import pytest
from conftest import draw_food11, draw_image
from PIL import Image


def tree(root):
    """Return each file under root with its bytes and its time of change."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def test_prints_its_lines_and_no_warning(finishedRun):
    (_, (prepare, *_)) = finishedRun
    # draw_food11 draws the same images in each split
    (one, two) = (os.path.join("Food-11", split, "0_0.jpg") for split in ("training", "validation"))
    (copies, out) = prepare.stdout.split("\n", 1)
    start = f"[INFO] images in more than one split: 22, such as {one} and {two}; "
    assert copies == f"{start}accuracy will look too high..."
    expected = "[INFO] copying images...\n"
    for split, count in (("training", 33), ("validation", 22), ("evaluation", 22)):
        expected += f"[INFO] total images found: {count}...\n"
        path = os.path.join("dataset", split)
        expected += f"[INFO] total images copied to {path}: {count}...\n"
    assert out.startswith(expected)
    table = [line.split() for line in out.removeprefix(expected).splitlines()]
    assert table[0] == ["training", "validation", "evaluation"]
    assert table[1:-1] == [[label, "3", "2", "2"] for label in config.CLASSES]
    assert table[-1] == ["total", "33", "22", "22"]
    # a log file is kept free of progress bars
    stderr = re.sub("\nOPENMP DISPLAY.*END\n", "", prepare.stderr, flags=re.DOTALL)
    assert stderr == ""
    if sys.platform == "linux":
        assert "OMP_WAIT_POLICY = 'PASSIVE'" in prepare.stderr


def test_copy_images_sorts_food11_by_the_class_index_in_the_name(capsys):
    draw_food11(Path("Food-11"))
    assert list(inspect.signature(copy_images).parameters)[:2] == ["rootDir", "destiDir"]
    copy_images("Food-11/training", "dataset/training")
    source = tree("Food-11/training")
    assert tree("dataset/training") == {
        f"{config.CLASSES[int(name.split('_')[0])]}/{name}": file for name, file in source.items()
    }
    assert capsys.readouterr().out == (
        "[INFO] total images found: 33...\n[INFO] total images copied to dataset/training: 33...\n"
    )


def test_copy_images_takes_class_folders_as_they_come():
    folders = ["Bread", "Dairy product", "Fried-food", "Noodles-Pasta", "Vegetable_Fruit", "RICE"]
    for index, folder in enumerate(folders):
        draw_image(Path("Food-11/training") / folder / f"{index}.jpg", index)
    draw_image(Path("Food-11/training/Noodles/Pasta/7.jpg"), 7)
    copy_images("Food-11/training", "dataset/training")
    assert set(tree("dataset/training")) == {
        "Bread/0.jpg",
        "Dairy_product/1.jpg",
        "Fried_food/2.jpg",
        "Noodles/Pasta/3.jpg",
        "Noodles/Pasta/7.jpg",
        "Vegetable/Fruit/4.jpg",
        "Rice/5.jpg",
    }


def test_a_second_run_changes_nothing():
    draw_food11(Path("Food-11"))
    copy_images("Food-11/training", "dataset/training")
    before = tree("dataset")
    copy_images("Food-11/training", "dataset/training")
    assert tree("dataset") == before


def test_an_image_that_changed_at_the_source_is_copied_again():
    draw_food11(Path("Food-11"))
    copy_images("Food-11/training", "dataset/training")
    draw_image(Path("Food-11/training/3_0.jpg"), 5)
    copy_images("Food-11/training", "dataset/training")
    source = Path("Food-11/training/3_0.jpg").read_bytes()
    assert Path("dataset/training/Egg/3_0.jpg").read_bytes() == source


@pytest.mark.parametrize(
    "labels", [["Noodles/Pasta", "Noodles/Ramen"], ["Soup", "Soup"], ["Rice", "rice/brown"]]
)
def test_two_labels_that_would_share_a_folder_are_refused(labels):
    config.CLASSES = ["Bread", *labels]
    draw_food11(Path("Food-11"), numClasses=3)
    with pytest.raises(UserError, match=f"'{labels[0]}' and '{labels[1]}'"):
        prepare()
    assert not os.path.exists("dataset")


@pytest.mark.parametrize("name", ["11_0.jpg", "-1_0.jpg", "photo.jpg", "Pizza/0_0.jpg", "3.jpg"])
def test_an_image_without_a_class_is_named_and_nothing_is_copied(name):
    draw_food11(Path("Food-11"))
    draw_image(Path("Food-11/training") / name, 0)
    with pytest.raises(UserError, match=f"{name}: the (name|folder)"):
        prepare()
    assert not os.path.exists("dataset")


def prepare(*flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["prepare_dataset.py", *flags])
        prepare_dataset.main()


def test_all_problems_are_listed_together_and_nothing_is_copied(capsys):
    draw_food11(Path("Food-11"))
    Path("Food-11/training/0_0.jpg").write_bytes(b"")
    draw_image(Path("Food-11/validation/lunch.jpg"), 0)
    for path in Path("Food-11/evaluation").glob("4_*"):
        path.unlink()
    draw_image(Path("dataset/training/Pizza/0_0.jpg"), 0)
    with pytest.raises(UserError, match="nothing was copied; problems listed above: 4") as error:
        prepare()
    assert "--skip-bad" in str(error.value)
    lines = capsys.readouterr().out.splitlines()
    (pointer,) = [line for line in lines if line.startswith("[INFO] ")]
    assert pointer == f"[INFO] each image and what is wrong with it: {BAD_PATH}..."
    lines.remove(pointer)
    for line, words in zip(
        lines,
        [
            f"{Path('Food-11/validation')}{os.sep}lunch.jpg: the name does not begin with",
            f"{Path('Food-11/training')}{os.sep}0_0.jpg: cannot be read as an image",
            f"{Path('dataset/training')}: holds images of an earlier data set or split",
            f"{Path('Food-11/evaluation')}: no image of class 4, Fried_food",
        ],
        strict=True,
    ):
        assert line.startswith(words)
    assert list(tree("dataset")) == [os.path.join("training", "Pizza", "0_0.jpg")]


def test_skip_bad_leaves_the_bad_images_out_lists_them_and_copies_the_rest(capsys):
    draw_food11(Path("Food-11"))
    Path("Food-11/training/0_0.jpg").write_bytes(b"")
    draw_image(Path("Food-11/validation/lunch.jpg"), 0)
    prepare("--skip-bad")
    out = capsys.readouterr().out
    assert out.count("[INFO] left out: ") == 2
    assert "[INFO] total images left out: 2...\n" in out
    assert "\n\n" not in out
    copied = {name.split(os.sep)[-1] for name in tree("dataset/training")}
    assert copied == set(tree("Food-11/training")) - {"0_0.jpg"}
    assert len(tree("dataset/validation")) == 22


def test_skip_bad_does_not_accept_a_class_that_is_left_without_images():
    draw_food11(Path("Food-11"), counts={"training": 1, "validation": 1, "evaluation": 1})
    Path("Food-11/training/3_0.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="training: no image of class 3, Egg"):
        prepare("--skip-bad")
    assert not os.path.exists("dataset")


@pytest.mark.parametrize("moment", [0, 1, 20, 40])
def test_a_copy_killed_in_the_middle_of_a_file_leaves_no_half_image(monkeypatch, moment):
    draw_food11(Path("Food-11"))
    passed = []

    def copy_half(source, target):
        data = Path(source).read_bytes()
        if len(passed) == moment:
            Path(target).write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        passed.append(source)
        Path(target).write_bytes(data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copyfile", copy_half)
        prepare()
    sources = {file[0] for file in tree("Food-11").values()}
    images = [path for path in Path("dataset").rglob("*.jpg")]
    assert len(images) == moment
    assert all(path.read_bytes() in sources for path in images)
    prepare()
    assert sorted(tree("dataset").values()) == sorted(tree("Food-11").values())


def test_images_of_every_kind_are_no_trouble(capsys):
    draw_food11(Path("Food-11"))
    folder = Path("Food-11/training")
    (folder / "Thumbs.db").write_text("not an image")
    with Image.open(folder / "0_0.jpg") as image:
        for name, mode in {
            "0_grey.PNG": "L",
            "1_palette .png": "P",
            "2_größe.Jpeg": "CMYK",
            "3_rgba.png": "RGBA",
            "4_bit.tiff": "1",
            "5_sixteen.png": "I;16",
        }.items():
            image.convert("I" if mode == "I;16" else mode).convert(mode).save(folder / name)
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(folder / "6_turned.JPG", exif=exif)
    prepare()
    assert "dataset/training: 40...\n" in capsys.readouterr().out.replace(os.sep, "/")
    (ds, _) = create_dataloaders.get_dataloader(config.TRAIN, None, bs=1)
    assert len(ds) == 40
    assert {image.mode for image, _ in ds} == {"RGB"}


def test_files_that_are_no_images_are_counted_by_their_endings(capsys):
    draw_food11(Path("Food-11"))
    folder = Path("Food-11/validation")
    draw_image(folder / "0_7.webp", 0)
    draw_image(folder / "._0_0.jpg", 0)
    for name in ("0_8.HEIC", "1_8.heic", "note.txt"):
        (folder / name).write_text("")
    prepare()
    lines = capsys.readouterr().out.splitlines()
    line = f"[INFO] non-image files in {folder}: 1 ._*, 1 .txt..."
    assert sorted(line) in [sorted(line) for line in lines]
    # pictures are said apart, with what to do
    (line,) = [line for line in lines if ".heic" in line]
    assert re.match(rf"\[INFO\] .*{re.escape(str(folder))}.*: 2 \.heic;.* convert .*to JPEG", line)
    names = {path.name for path in Path("dataset/validation").rglob("*.*")}
    assert "0_7.webp" in names
    assert len(names) == 23


def draw_photos(counts):
    """Draw photographs in plain class folders; counts: {class name: number}."""
    for index, (name, count) in enumerate(counts.items()):
        for number in range(count):
            draw_image(Path("photos", name, f"{number}.jpg"), index, seed=100 * index + number)
    (config.DATA_PATH, config.CLASSES) = ("photos", list(counts))


def test_class_folders_are_split_the_same_on_every_run(capsys):
    draw_photos({"pizza": 20, "salad": 3, "soup": 7})
    prepare()
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-4:]]
    assert table == [
        ["pizza", "14", "3", "3"],
        ["salad", "1", "1", "1"],
        ["soup", "5", "1", "1"],
        ["total", "20", "5", "5"],
    ]
    before = tree("dataset")
    assert sorted(file[0] for file in before.values()) == sorted(
        file[0] for file in tree("photos").values()
    )
    prepare()
    assert tree("dataset") == before
    shutil.rmtree("dataset")
    prepare("--seed", "7")
    assert set(tree("dataset")) != set(before)


def test_photographs_that_were_added_or_moved_are_met_with_the_way_to_go_on():
    draw_photos({"pizza": 20, "salad": 20})
    prepare()
    os.rename("photos/pizza/0.jpg", "photos/salad/20.jpg")
    with pytest.raises(UserError) as caught:
        prepare()
    assert re.search(
        r"dataset.\w+: holds .* or split \(\d+, such as dataset.\w+.pizza", str(caught.value)
    )
    assert "; move dataset away, or set another BASE_PATH in config.py" in str(caught.value)
    assert "remove" not in str(caught.value)
    shutil.rmtree("dataset")
    prepare()
    assert len(tree("dataset")) == 40


def test_file_names_that_are_no_text_are_split_as_well():
    draw_photos({"pizza": 4, "salad": 3})
    os.rename("photos/pizza/0.jpg", b"photos/pizza/\xff.jpg")
    prepare()
    assert len(tree("dataset")) == 7


def test_a_class_of_too_few_photographs_to_split_is_named():
    draw_photos({"pizza": 20, "salad": 2})
    line = "photos: no image of class 1, salad, for dataset.training; add one: each class needs an "
    with pytest.raises(UserError, match=line):
        prepare()


def test_one_cause_is_one_line(capsys):
    draw_food11(Path("Food-11"), counts={"training": 6, "validation": 6, "evaluation": 6})
    # a missing comma
    config.CLASSES[2:4] = ["DessertEgg"]
    with pytest.raises(UserError, match="nothing was copied; problems listed above: 3"):
        prepare()
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "6 images" in line]
    assert len(lines) == 3
    assert re.match(r"Food-11.training: 6 images, such as 10_0\.jpg: the name does not", lines[0])


def test_unreadable_images_of_a_folder_are_one_line(capsys):
    draw_food11(Path("Food-11"), counts={"training": 3, "validation": 1, "evaluation": 1})
    for index in range(3):
        # each is truncated by another number of bytes, which the reason tells
        path = Path(f"Food-11/training/{index}_0.jpg")
        path.write_bytes(path.read_bytes()[: -40 - index])
        Path(f"Food-11/training/{index}_1.jpg").write_text("no image")
    with pytest.raises(UserError, match="nothing was copied; problems listed above: 1"):
        prepare()
    line = (
        r"Food-11.training: 6 images, such as 0_0\.jpg: cannot be read as an image \(.+\); replace"
    )
    lines = capsys.readouterr().out.splitlines()
    assert [re.match(line, text) is not None for text in lines].count(True) == 1
    assert len(lines) == 2
    prepare("--skip-bad")
    assert capsys.readouterr().out.count("[INFO] left out: ") == 1
    shutil.rmtree("dataset")
    for path in Path("Food-11/training").glob("[012]_[01].jpg"):
        path.unlink()
    prepare("--skip-bad")
    assert capsys.readouterr().out.startswith("[INFO] total images left out: 0...\n")


def find_copies(out, where):
    """Return number and paths of the copies that prepare printed."""
    pattern = rf"^\[INFO\] .*{where}: (\d+), such as (.+?) and (.+?)(?:; .*)?\.\.\.$"
    ((number, *paths),) = re.findall(pattern, out, re.M)
    return int(number), paths


def test_copies_of_an_image_in_two_splits_are_counted_and_named(capsys):
    draw_photos({"pizza": 20, "salad": 20})
    prepare()
    assert "more than one" not in capsys.readouterr().out
    shutil.rmtree("dataset")
    for number in range(10):
        shutil.copy("photos/pizza/0.jpg", f"photos/pizza/copy{number}.jpg")
    prepare()
    out = capsys.readouterr().out
    (number, paths) = find_copies(out, "more than one split")
    assert number == 1
    assert paths[0] != paths[1]
    assert "more than one class" not in out
    assert len({Path(path).read_bytes() for path in paths}) == 1


def test_the_copies_that_are_named_are_of_two_splits(capsys):
    draw_food11(Path("Food-11"), counts={"training": 2, "validation": 1, "evaluation": 1})
    for split in ("validation", "evaluation"):
        for path in Path("Food-11", split).glob("*.jpg"):
            draw_image(path, 0, seed=zlib.crc32(str(path).encode()))
    for name in ("training/0_5", "training/0_6", "evaluation/0_7"):
        shutil.copy("Food-11/training/0_0.jpg", f"Food-11/{name}.jpg")
    prepare()
    (number, paths) = find_copies(capsys.readouterr().out, "more than one split")
    assert number == 1
    assert {Path(path).parent.name for path in paths} == {"training", "evaluation"}


def test_copies_of_an_image_in_two_classes_are_counted_and_named(capsys):
    draw_photos({"pizza": 20, "salad": 20})
    shutil.copy("photos/pizza/0.jpg", "photos/salad/lunch.jpg")
    shutil.copy("photos/pizza/1.jpg", "photos/salad/dinner.jpg")
    prepare()
    (number, paths) = find_copies(capsys.readouterr().out, "more than one class")
    assert number == 2
    assert {Path(path).parent.name for path in paths} == {"pizza", "salad"}
    assert len({Path(path).read_bytes() for path in paths}) == 1


def test_sample_never_touches_a_data_path_that_exists(capsys):
    draw_food11(Path("Food-11"))
    before = tree("Food-11")
    with pytest.raises(UserError, match="^Food-11 exists and is not the .*sample; leave out"):
        prepare("--sample")
    assert tree("Food-11") == before
    assert not os.path.exists("dataset")
    # the sample itself is prepared again
    Path("Food-11", MARK).write_text("drawn")
    before = tree("Food-11")
    prepare("--sample")
    assert "[INFO] the sample is at Food-11 already..." in capsys.readouterr().out
    assert tree("Food-11") == before
    assert len(tree("dataset")) == len(before) - 1
