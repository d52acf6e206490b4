"""Folders, files and names as people really have them, and what prepare_dataset.py does."""

import io
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import prepare_dataset
import train_distributed
from pyimagesearch import config, food_classifier, images
from pyimagesearch.cli import UserError
from pyimagesearch.create_dataloaders import check_splits
from pyimagesearch.dataset_checks import BAD_PATH

import numpy as np
import pytest
from conftest import TinyNet, draw_image, run_forked
from PIL import Image, ImageOps, features

# images.py itself ignores what PIL warns of, by a filter that pytest takes away
oddities = pytest.mark.filterwarnings("ignore")
NAMES = ("pie", "ribs", "tartare")


@pytest.fixture
def photos():
    """Draw seven photographs of each of three classes in plain class folders."""
    for index, name in enumerate(NAMES):
        for number in range(7):
            draw_image(Path("photos", name, f"{number}.jpg"), index * 3, 10 * index + number)
    (config.DATA_PATH, config.CLASSES) = ("photos", list(NAMES))


def prepare(*flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["prepare_dataset.py", *flags])
        prepare_dataset.main()


def read_tree(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def copied():
    """Return the names of the copies, each behind its class."""
    return sorted(f"{path.parent.name}/{path.name}" for path in Path("dataset").glob("*/*/*"))


# ---- 2: the copies and what is copied


@pytest.mark.parametrize(
    ("data", "base"),
    [
        ("photos", "photos"),
        ("photos", "./photos/"),
        ("photos", "photos/prepared"),
        ("photos/training", "photos"),
        ("photos", "link"),
        ("link", "photos"),
        ("photos", "link/prepared"),
        (".", "dataset"),
        ("photos/../photos", "photos"),
    ],
)
def test_copies_that_would_mix_with_the_photographs_are_refused(photos, data, base):
    os.symlink("photos", "link")
    if data == "photos/training":
        for split in ("training", "validation", "evaluation"):
            shutil.copytree("photos/pie", f"photos/{split}/pie")
    before = read_tree("photos")
    (config.DATA_PATH, config.BASE_PATH) = (data, base)
    names = {"TRAIN": "training", "VAL": "validation", "TEST": "evaluation"}
    for name, folder in names.items():
        setattr(config, name, os.path.join(base, folder))
    with pytest.raises(UserError) as caught:
        prepare()
    assert re.search(r"DATA_PATH in config.py is .* BASE_PATH", str(caught.value))
    assert "remove" not in str(caught.value)
    assert read_tree("photos") == before
    assert not os.path.exists("dataset")


@pytest.mark.parametrize("base", ["photos2", "photo", "work/photos"])
def test_folders_whose_names_begin_alike_do_not_mix(photos, base):
    config.BASE_PATH = base
    for name, folder in (("TRAIN", "training"), ("VAL", "validation"), ("TEST", "evaluation")):
        setattr(config, name, os.path.join(base, folder))
    prepare()
    assert len(read_tree(base)) == 21


# ---- 5: hidden folders


def test_hidden_folders_are_no_classes(photos, capsys):
    shutil.copytree("photos/pie", "photos/.thumbnails")
    shutil.copytree("photos/pie", "photos/ribs/.ipynb_checkpoints")
    prepare()
    assert len(copied()) == 21
    os.mkdir("dataset/training/.ipynb_checkpoints")
    draw_image(Path("dataset/validation/.cache/1.jpg"), 0)
    # training takes it, and prepare has nothing to say
    check_splits()
    lines = re.findall(r"dataset/\w+: (\d+) images of 3 classes", capsys.readouterr().out)
    assert sum(map(int, lines)) == 21
    prepare()


# ---- 6: links


def test_links_to_folders_and_files_are_followed(photos):
    os.makedirs("disk")
    shutil.move("photos/pie", "disk/pie")
    os.symlink(os.path.abspath("disk/pie"), "photos/pie")
    shutil.move("photos/ribs/0.jpg", "disk/other.jpg")
    os.symlink("../../disk/other.jpg", "photos/ribs/0.jpg")
    prepare()
    assert len(copied()) == 21
    # copies, not links, which would end with the other disk
    assert not any(path.is_symlink() for path in Path("dataset").rglob("*"))


@pytest.mark.parametrize(
    ("link", "target"),
    [("photos/pie/again", ".."), ("photos/pie/self", "."), ("photos/all", "../photos")],
)
def test_a_loop_of_links_ends_in_one_line(photos, link, target):
    os.symlink(target, link)
    with pytest.raises(UserError, match=f"^{link}: .*link.*folder above"):
        prepare()
    assert not os.path.exists("dataset")


def test_two_folders_that_link_to_each_other_end_in_one_line(photos):
    os.makedirs("photos/pie/a")
    os.makedirs("photos/ribs/b")
    os.symlink(os.path.abspath("photos/ribs"), "photos/pie/a/there")
    os.symlink(os.path.abspath("photos/pie"), "photos/ribs/b/back")
    with pytest.raises(UserError) as caught:
        prepare()
    assert len(str(caught.value)) < 500


# ---- 7: bad files


def test_each_bad_image_and_its_reason_can_be_read_and_the_summary_stays_short(photos, capsys):
    whole = Path("photos/pie/0.jpg").read_bytes()
    draw_image(Path("photos/pie/cut.png"), 0)
    png = Path("photos/pie/cut.png").read_bytes()
    bad = {"a.jpg": b"", "b.jpg": b"no image", "c.jpg": whole[:-100], "cut.png": png[:-900]}
    for name, data in bad.items():
        Path("photos/pie", name).write_bytes(data)
    for flags in ([], ["--skip-bad"]):
        if flags:
            prepare(*flags)
        else:
            with pytest.raises(UserError, match="nothing was copied; problems listed above: 1"):
                prepare()
        out = capsys.readouterr().out
        assert BAD_PATH in out
        assert out.count("cannot be read as an image") == 1
        lines = Path(BAD_PATH).read_text().splitlines()
        assert len(lines) == 4
        for line, name in zip(lines, bad, strict=True):
            assert re.match(rf"photos/pie/{name}: cannot be read as an image \(.+\)", line)
        # of four kinds
        assert len({re.search(r"\((.+)\)", line)[1] for line in lines}) == 4
    assert len(copied()) == 21


def test_photographs_without_a_class_stand_there_too_and_a_good_run_writes_nothing(photos):
    prepare()
    assert not os.path.exists(BAD_PATH)
    for number in range(4):
        draw_image(Path("photos/other", f"{number}.jpg"), 0)
    prepare("--skip-bad")
    lines = Path(BAD_PATH).read_text().splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        f"photos/other/{number}.jpg" for number in range(4)
    ]


# ---- 8: what viewers show is read


def write_jpeg(path, entries, extra=b""):
    """Write a picture with these EXIF entries; return how it looks without them."""
    (y, x) = np.mgrid[0:96, 0:128]
    buffer = io.BytesIO()
    Image.fromarray(np.stack([x * 2, y * 2, x + y], -1).astype(np.uint8)).save(buffer, "JPEG")
    jpg = buffer.getvalue()
    data = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, count, value in entries:
        data += struct.pack("<HHI", tag, kind, count) + value
    data += struct.pack("<I", 0) + extra
    Path(path).write_bytes(
        jpg[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + jpg[2:]
    )
    return Image.open(io.BytesIO(jpg))


TURNED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
ENTRIES = {
    # a fraction of -1 / 0
    "rational": (
        [TURNED, (0x011A, 10, 1, struct.pack("<I", 8 + 2 + 24 + 4))],
        struct.pack("<ii", -1, 0),
    ),
    "width as text": ([(0x0100, 2, 4, b"128\0"), TURNED], b""),
    "an unknown kind": ([TURNED, (0x011A, 99, 1, b"\0\0\0\0")], b""),
    "an offset out of the file": ([TURNED, (0x010E, 2, 400, struct.pack("<I", 65000))], b""),
}


@oddities
@pytest.mark.parametrize("name", ENTRIES)
def test_malformed_exif_leaves_the_orientation_as_it_is(name):
    plain = write_jpeg("a.jpg", *ENTRIES[name])
    picture = images.load_image("a.jpg")
    assert picture.size == (96, 128)
    assert np.array_equal(picture, plain.transpose(Image.Transpose.ROTATE_270))


@oddities
def test_malformed_orientation_is_none():
    for value in (b"6\0\0\0", struct.pack("<HH", 0, 0), struct.pack("<HH", 9, 0)):
        kind = 2 if value[:1] == b"6" else 3
        plain = write_jpeg("a.jpg", [(0x0112, kind, 2 if kind == 2 else 1, value)])
        assert np.array_equal(images.load_image("a.jpg"), plain)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
def test_every_orientation_is_turned_as_pil_does(orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw_image(Path("plain.png"), 3, size=(24, 16))
    with Image.open("plain.png") as plain:
        plain.save(f"a.{ending}", exif=exif)
    with Image.open(f"a.{ending}") as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(images.load_image(f"a.{ending}"), expected)
    assert images.load_image(f"a.{ending}").size == ((24, 16) if orientation < 5 else (16, 24))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt"])
def test_a_png_with_much_text_is_read(kind):
    draw_image(Path("plain.png"), 3)
    png = Path("plain.png").read_bytes()
    text = b"x" * (3 << 20)
    data = {
        b"zTXt": b"Comment\0\0" + zlib.compress(text, 9),
        b"iTXt": b"Comment\0\1\0\0\0" + zlib.compress(text, 9),
        b"tEXt": b"Comment\0" + text,
    }[kind]
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    Path("text.png").write_bytes(png[:33] + chunk + png[33:])
    assert np.array_equal(images.load_image("text.png"), images.load_image("plain.png"))


def test_odd_photographs_train_without_a_warning():
    """All of it as a user runs it: under pytest the filters of the product do not hold."""
    for index, name in enumerate(("蛋", "pie", "ribs")):
        for number in range(4):
            draw_image(Path("photos", name, f"{number}.jpg"), index * 3, 10 * index + number)
    for name, arguments in ENTRIES.items():
        write_jpeg(f"photos/蛋/{name}.jpg", *arguments)
    settings = {"DATA_PATH": "photos", "CLASSES": ["蛋", "pie", "ribs"], "NUM_WORKERS": 0}
    flags = "--epochs 1 --image-size 64 --no-pretrained".split()
    for script, others in (("prepare_dataset.py", []), ("train_distributed.py", flags)):
        run = run_forked(script, *others, settings=settings)
        assert (run.returncode, run.stderr) == (0, "")
    assert os.path.exists(config.CONFUSION_PATH)
    assert "cannot be drawn" not in run.stdout


# ---- 9: a disk that keeps no times


def test_a_disk_that_keeps_no_times_takes_the_copies(photos, monkeypatch):
    def refuse(path, *args, **options):
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "utime", refuse)
    prepare()
    assert len(copied()) == 21
    assert not [path for path in Path("dataset").rglob("*") if "partial" in path.name]
    # and again
    prepare()
    assert len(copied()) == 21


# ---- 10: splits of other names


SPLITS = [
    ("train", "val", "test"),
    ("Train", "Valid", "TEST"),
    ("training", "validation", "testing"),
    ("train", "validation", "evaluation"),
]


def draw_splits(names, classes=NAMES):
    for split, count in zip(names, (3, 2, 1), strict=True):
        for index, name in enumerate(classes):
            for number in range(count):
                seed = zlib.crc32(f"{split} {index} {number}".encode())
                draw_image(Path("photos", split, name, f"{number}.jpg"), index * 3, seed)
    (config.DATA_PATH, config.CLASSES) = ("photos", list(classes))


@pytest.mark.parametrize("names", SPLITS)
def test_splits_go_where_their_names_say(names):
    draw_splits(names)
    prepare()
    for split, count in (("training", 3), ("validation", 2), ("evaluation", 1)):
        for name in NAMES:
            assert len(os.listdir(f"dataset/{split}/{name}")) == count


@pytest.mark.parametrize("missing", ["train", "val", "test"])
def test_a_missing_split_is_one_line_that_names_the_three(missing):
    draw_splits(("train", "val", "test"))
    shutil.rmtree(f"photos/{missing}")
    with pytest.raises(UserError, match="^photos/.*training, validation, evaluation"):
        prepare()


def test_a_class_that_is_named_like_a_split_is_a_class():
    for index, name in enumerate(("test", "train", "pie")):
        for number in range(4):
            draw_image(Path("photos", name, f"{number}.jpg"), index * 3, 10 * index + number)
    (config.DATA_PATH, config.CLASSES) = ("photos", ["test", "train", "pie"])
    prepare()
    assert sorted(os.listdir("dataset/training")) == ["pie", "test", "train"]
    assert len(copied()) == 12


def test_a_folder_beside_the_three_splits_is_named(capsys):
    draw_splits(("train", "val", "test"))
    draw_image(Path("photos/extra/pie/1.jpg"), 0)
    os.mkdir("photos/.git")
    prepare()
    lines = [line for line in capsys.readouterr().out.splitlines() if "not copied" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"[INFO] {os.path.join('photos', 'extra')} ")


# ---- 11: long names


@pytest.mark.parametrize("length", [247, 252, 255])
def test_a_long_file_name_is_copied(photos, length):
    name = "n" * (length - 4) + ".jpg"
    for number in range(3):
        draw_image(Path("photos/pie", f"{number}{name[1:]}"), 0, 90 + number)
    prepare()
    assert len(copied()) == 24
    prepare()


def test_a_long_name_in_letters_of_two_bytes_is_copied(photos):
    draw_image(Path("photos/pie", "ü" * 124 + ".jpg"), 0, 99)
    prepare()
    assert len(copied()) == 22


# ---- 14, 15: endings


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".gif", ".avif", ".JFIF"])
def test_what_can_be_read_is_read_in_folders_too(photos, monkeypatch, capsys, ending):
    if ending == ".avif" and not features.check("avif"):
        pytest.skip("this PIL cannot write AVIF")
    kind = {".jfif": "JPEG", ".jpe": "JPEG"}.get(ending.lower(), ending[1:].upper())
    for number in range(3):
        draw_image(Path("x.png"), 3, 50 + number)
        with Image.open("x.png") as image:
            image.save(f"photos/pie/web {number}{ending}", kind)
    prepare()
    assert "non-image" not in capsys.readouterr().out
    assert sum(name.endswith(ending) for name in copied()) == 3
    # training counts them
    check_splits()
    lines = re.findall(r"dataset/\w+: (\d+) images", capsys.readouterr().out)
    assert sum(map(int, lines)) == 24


def test_many_files_without_an_ending_are_one_short_line(photos, capsys):
    for number in range(1500):
        Path(f"photos/pie/IMG{number}").touch()
    prepare()
    lines = [line for line in capsys.readouterr().out.splitlines() if "1500" in line]
    assert len(lines) == 1
    assert len(lines[0]) < 200


def test_many_endings_are_the_commonest_and_a_number(photos, capsys):
    for number in range(300):
        Path(f"photos/pie/file.{number}").touch()
    for number in range(9):
        Path(f"photos/pie/note {number}.txt").touch()
    prepare()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if ".txt" in line]
    assert "9 .txt" in line
    assert len(line) < 200
    # all of them are counted
    assert re.search(r"\b296 other", line)


# ---- found by a newcomer


@pytest.mark.parametrize("ending", [".heic", ".HEIC", ".nef", ".dng"])
def test_a_class_of_pictures_that_cannot_be_read_is_told_to_convert_them(photos, capsys, ending):
    for path in Path("photos/pie").iterdir():
        path.rename(path.with_suffix(ending))
    with pytest.raises(UserError) as caught:
        prepare()
    out = capsys.readouterr().out + str(caught.value)
    (line,) = [line for line in out.splitlines() if f"7 {ending.lower()}" in line]
    assert re.search("convert .*to JPEG", line)
    problems = [line for line in out.splitlines() if "no image of class 0, pie" in line]
    assert problems
    for line in problems:
        assert re.search("convert .*to JPEG", line)
        assert "add one" not in line


def test_no_class_that_matches_is_one_line_with_the_list_to_paste(photos, capsys):
    os.rename("photos/pie", "photos/Apple 'Pie'")
    config.CLASSES = ["Bread", "Egg", "Soup"]
    with pytest.raises(UserError) as caught:
        prepare()
    assert capsys.readouterr().out == ""
    pasted = re.search(r"CLASSES = (\[.+\])", str(caught.value))[1]
    config.CLASSES = eval(pasted)
    assert config.CLASSES == ["Apple 'Pie'", "ribs", "tartare"]
    prepare()
    assert len(copied()) == 21


def test_no_class_of_three_splits_that_matches_is_one_line_too(capsys):
    draw_splits(("train", "val", "test"))
    config.CLASSES = ["Bread", "Egg", "Soup"]
    with pytest.raises(UserError) as caught:
        prepare()
    assert capsys.readouterr().out == ""
    assert "CLASSES = ['pie', 'ribs', 'tartare']" in str(caught.value)


def test_a_folder_inside_a_class_folder_is_told_to_move_its_images_up(photos, capsys):
    draw_image(Path("photos/pie/holiday 2025/1.jpg"), 0, 99)
    with pytest.raises(UserError, match="problems listed above: 1") as caught:
        prepare()
    (line,) = capsys.readouterr().out.splitlines()[-1:]
    assert line.startswith(os.path.join("photos", "pie", "holiday 2025", "1.jpg"))
    for text in (line, str(caught.value)):
        assert "move its images up" in text
        assert "remove" not in text.replace("move its", "")


@pytest.mark.parametrize("mess", ["Pizza/1.jpg", "pie/old/1.jpg", "lunch.jpg", "pie/bad.jpg"])
def test_no_advice_about_a_photograph_is_to_remove_it(photos, capsys, mess):
    draw_image(Path("photos", mess), 0, 99)
    if "bad" in mess:
        Path("photos", mess).write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        prepare()
    text = capsys.readouterr().out + str(caught.value) + Path(BAD_PATH).read_text()
    assert not re.search(r"\b(remove|delete)", text)


def test_a_training_of_such_folders_runs_to_its_end(photos, monkeypatch):
    monkeypatch.setattr(food_classifier, "densenet121", lambda weights: TinyNet())
    prepare()
    os.mkdir("dataset/training/.ipynb_checkpoints")
    flags = "--image-size 64 --epochs 1 --num-workers 0 --no-pretrained".split()
    monkeypatch.setattr("sys.argv", ["train_distributed.py", *flags])
    train_distributed.main()
    assert os.path.exists(config.REPORT_PATH)
