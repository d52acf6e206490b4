import inspect
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import draw_food11, draw_image
from PIL import Image

import prepare_dataset
from prepare_dataset import copy_images
from pyimagesearch import config, create_dataloaders
from pyimagesearch.cli import UserError


def tree(root):
    """Return each file under root with its bytes and its time of change."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def test_prints_its_lines_and_no_warning(finishedRun):
    (_, (prepare, _, _)) = finishedRun
    expected = "[INFO] copying images...\n"
    for split, count in (("training", 33), ("validation", 22), ("evaluation", 22)):
        expected += f"[INFO] total images found: {count}...\n"
        path = os.path.join("dataset", split)
        expected += f"[INFO] total images copied to {path}: {count}...\n"
    assert prepare.stdout == expected
    # nothing but progress bars
    assert re.sub(r"[^\r\n]*\d+%\|[^\r\n]*|[\r\n ]", "", prepare.stderr) == ""


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
        copy_images("Food-11/training", "dataset/training")
    assert not os.path.exists("dataset")


@pytest.mark.parametrize("name", ["11_0.jpg", "-1_0.jpg", "photo.jpg", "Pizza/0_0.jpg", "3.jpg"])
def test_an_image_without_a_class_is_named_and_nothing_is_copied(name):
    draw_food11(Path("Food-11"))
    draw_image(Path("Food-11/training") / name, 0)
    with pytest.raises(UserError, match=name):
        copy_images("Food-11/training", "dataset/training")
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
    for line, words in zip(
        lines,
        [
            f"{Path('Food-11/training')}{os.sep}0_0.jpg: cannot be read as an image",
            f"{Path('Food-11/validation')}{os.sep}lunch.jpg: the name does not begin with",
            f"{Path('dataset/training/Pizza')}: holds 1 images",
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


def test_pictures_in_other_formats_are_counted(capsys):
    draw_food11(Path("Food-11"))
    for name in ("0_7.webp", "0_8.HEIC", "note.txt"):
        Path("Food-11/validation", name).write_text("")
    prepare()
    folder = os.path.join("Food-11", "validation")
    assert f"[INFO] 2 pictures in {folder} passed over (" in capsys.readouterr().out


def test_sample_never_touches_a_data_path_that_exists():
    draw_food11(Path("Food-11"))
    before = tree("Food-11")
    prepare("--sample")
    assert tree("Food-11") == before
    assert len(tree("dataset")) == len(before)
