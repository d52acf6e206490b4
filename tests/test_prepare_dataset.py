import inspect
import os
from pathlib import Path

import pytest
from conftest import draw_food11, draw_image

import prepare_dataset
from prepare_dataset import copy_images
from pyimagesearch import config
from pyimagesearch.errors import UserError


def tree(root):
    """Return each file under root with its bytes and its time of change."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def test_copy_images_sorts_food11_by_the_class_index_in_the_name(capsys):
    draw_food11(Path("Food-11"))
    assert list(inspect.signature(copy_images).parameters) == ["rootDir", "destiDir"]
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


def test_sample_never_touches_a_data_path_that_exists(monkeypatch):
    draw_food11(Path("Food-11"))
    before = tree("Food-11")
    monkeypatch.setattr("sys.argv", ["prepare_dataset.py", "--sample"])
    prepare_dataset.main()
    assert tree("Food-11") == before
    assert len(tree("dataset")) == len(before)
