"""Which files are images, and how odd, large and broken ones are read."""

import errno
import os
import re
import runpy
import struct
import warnings
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from helpers import draw_image
from PIL import Image, ImageFile, ImageOps

from pyimagesearch.support.errors import ImageError
from pyimagesearch.support.images import (
    SYSTEM_FOLDERS,
    find_images,
    is_image,
    list_folder,
    list_images,
    list_sizes,
    load_image,
    walk,
)


def write(*paths):
    """Make files with their folders; which are images is a matter of names."""
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()


def test_images_of_all_endings_are_found_and_the_others_counted_but_no_hidden_file(capsys):
    names = "1.JPEG 1.jpg 2.webp 3.jfif 4.gif 5.avif b/1.png".split()
    found = [f"photos/a/{name}" for name in names]
    write(*found, "photos/a/1.heic", "photos/a/2.heic", "photos/1.HEIC", "photos/jpg")
    write(*(f"photos/{number}.{number}" for number in range(30)))
    # a Mac's companion files, thumbnails
    write("photos/._1.jpg", "photos/a/.2.jpg", "photos/.thumbnails/1.jpg", "photos/a/.git/b/1.jpg")
    write("photos/a/._1.heic", "photos/.DS_Store")
    assert list_images("photos") == found
    assert find_images("photos/a/b") == ["photos/a/b/1.png"]
    assert find_images("photos") == found
    (line,) = capsys.readouterr().out.splitlines()
    assert re.search("photos: 3 .heic, .*1 no ending.*; .* JPEG", line)
    # the rare ones too
    assert all(f"1 .{number}" in line for number in range(30))


def test_links_are_followed_but_in_no_circle():
    write("disk/1.jpg", "disk/album/2.jpg", "photos/pie/3.jpg", "photos/ribs/a/4.jpg")
    os.symlink("../../disk/1.jpg", "photos/pie/1.jpg")
    os.symlink("../../disk/album", "photos/pie/album")
    names = "pie/1.jpg pie/3.jpg pie/album/2.jpg ribs/a/4.jpg".split()
    found = [f"photos/{name}" for name in names]
    assert walk("photos").files == found
    links = {
        # back to itself, to DATA_PATH, to the folder that it is in
        "photos/pie/self": ".",
        "photos/ribs/a/up": "../..",
        "photos/ribs/a/upper": "../../..",
        # each way: no end of pie/there/back/there
        "photos/pie/there": "../ribs",
        "photos/ribs/back": "../pie",
        # the same folder a second time, and one that leads back from the other disk
        "photos/ribs/album": "../../disk/album",
        "disk/album/back": "../../photos/ribs",
    }
    for path, target in links.items():
        os.symlink(target, path)
    links["photos/pie/album/back"] = links.pop("disk/album/back")
    tree = walk("photos")
    assert tree.files == found
    assert tree.repeated == sorted(links)


def test_albums_that_link_to_each_other_are_each_there_once_by_their_own_paths(capsys):
    count = 10
    for number in range(count):
        write(f"photos/pie/{number}/1.jpg")
        for other in range(count):
            if other != number:
                os.symlink(f"../{other}", f"photos/pie/{number}/a{other}")
    found = [f"photos/pie/{number}/1.jpg" for number in range(count)]
    assert find_images("photos") == found
    (line,) = capsys.readouterr().out.splitlines()
    text = "passed over 90 links in photos to what is read anyway, such as photos/pie/0/a1"
    assert line == f"[INFO] {text}..."


@pytest.mark.parametrize("isFolder", [True, False])
def test_what_is_there_itself_is_there_by_that_path_and_not_through_a_link(isFolder):
    write("photos/ribs/1.jpg")
    os.mkdir("photos/pie")
    # the link is of another class, and the first in the order of paths
    if isFolder:
        os.symlink("../ribs", "photos/pie/album")
    else:
        os.symlink("../ribs/1.jpg", "photos/pie/0.jpg")
    tree = walk("photos")
    assert tree.files == ["photos/ribs/1.jpg"]
    assert tree.repeated == ["photos/pie/album" if isFolder else "photos/pie/0.jpg"]


def test_of_links_to_one_file_elsewhere_the_first_counts_and_one_to_nothing_is_a_file():
    write("disk/1.jpg", "photos/pie/3.jpg")
    os.symlink("../../disk/1.jpg", "photos/pie/2.jpg")
    os.symlink("../../disk/1.jpg", "photos/pie/1.jpg")
    # reading them is an error with their paths
    os.symlink("nothing", "photos/pie/4.jpg")
    os.symlink("5.jpg", "photos/pie/5.jpg")
    tree = walk("photos")
    assert tree.files == [f"photos/pie/{number}.jpg" for number in (1, 3, 4, 5)]
    assert tree.repeated == ["photos/pie/2.jpg"]
    assert list_folder("photos/pie") == ([], [f"photos/pie/{number}.jpg" for number in range(1, 6)])


def test_the_folder_itself_may_be_a_link_hidden_or_named_like_one_of_the_systems():
    for name in ("@eaDir", ".cache"):
        write(f"{name}/pie/1.jpg")
        os.symlink(name, f"link to {name}")
        for folder in (name, f"link to {name}"):
            assert list_images(folder) == [f"{folder}/pie/1.jpg"]
            assert is_image(f"{folder}/pie/1.jpg", rootDir=folder)


SYSTEM_NAMES = (
    """@eaDir #recycle #snapshot @Recycle $RECYCLE.BIN __MACOSX lost+found Thumbs
thumbnails THMBNL""".split()
    + ["System Volume Information", "Network Trash Folder"]
)


@pytest.mark.parametrize("name", SYSTEM_NAMES)
def test_system_folders_are_passed_over_and_their_files_counted_in_a_line(name, capsys):
    write("photos/pie/1.jpg")
    paths = (f"photos/{name}/1.jpg", f"photos/pie/{name}/1.jpg/SMALL.jpg", f"photos/pie/{name}/2")
    write(*paths)
    assert find_images("photos") == list_images("photos") == ["photos/pie/1.jpg"]
    example = min(paths)
    line = f"[INFO] passed over 3 files in system folders, such as {example}...\n"
    assert capsys.readouterr().out == line
    assert list_folder("photos") == (["photos/pie"], [])
    for path in paths:
        assert not is_image(path, rootDir="photos")
    # and what is only named alike
    write(f"photos/my {name}/1.jpg", f"photos/{name}.jpg")
    assert len(list_images("photos")) == 3


def test_an_empty_system_folder_or_one_that_cannot_be_read_ends_nothing(monkeypatch, capsys):
    write("photos/pie/1.jpg", "photos/lost+found/1.jpg")
    os.mkdir("photos/#recycle")
    scandir = os.scandir

    def refuse(path):
        if "lost+found" in path:
            raise PermissionError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_images("photos") == ["photos/pie/1.jpg"]
    assert capsys.readouterr().out == ""


def test_the_names_of_system_folders_are_in_lower_case_as_they_are_compared():
    assert {name.lower() for name in SYSTEM_FOLDERS} == SYSTEM_FOLDERS


def test_what_windows_hides_is_hidden(capsys):
    write("photos/1.jpg", "photos/Thumbs.db", "photos/desktop.ini", "photos/ehthumbs.db")
    assert find_images("photos") == ["photos/1.jpg"]
    assert capsys.readouterr().out == ""


def test_photographs_that_are_not_downloaded_are_counted_in_a_line(capsys):
    stubs = [".2.jpg.icloud", "8.jpg.nextcloud", "9.PNG.owncloud", "7.jpeg.cloud", ".3.HEIC.icloud"]
    write("photos/pie/1.jpg", *(f"photos/pie/{name}" for name in stubs))
    # no photographs, no stubs, none of the user's
    names = [".notes.txt.icloud", "list.csv.nextcloud", "icloud.jpg", ".trash/1.jpg.nextcloud"]
    write(*(f"photos/pie/{name}" for name in names))
    assert find_images("photos") == ["photos/pie/1.jpg", "photos/pie/icloud.jpg"]
    (line, others) = capsys.readouterr().out.splitlines()
    text = "5 photographs in photos are not downloaded, such as photos/pie/.2.jpg.icloud"
    assert line == f"[INFO] {text}: have the cloud program download them..."
    assert "not read in photos: 1 .nextcloud;" in others


def test_sizes_are_listed_by_the_path_below_a_folder():
    for path, data in (("photos/a.jpg", b"12"), ("photos/b/c.jpg", b"123")):
        write(path)
        Path(path).write_bytes(data)
    expected = [("a.jpg", 2), (os.path.join("b", "c.jpg"), 3)]
    assert list_sizes("photos", list_images("photos")) == expected


def test_a_folder_that_cannot_be_read_is_an_error(monkeypatch):
    write("photos/pie/1.jpg")
    # the tests may run as root, whom nothing is refused
    scandir = os.scandir
    folders = [scandir("photos"), PermissionError("photos/pie")]
    monkeypatch.setattr(os, "scandir", Mock(side_effect=folders))
    with pytest.raises(PermissionError, match="pie"):
        list_images("photos")


def test_every_mode_is_read_as_the_same_rgb():
    grey = np.arange(0, 256, 8, dtype=np.uint8).repeat(32).reshape(32, 32)
    image = Image.fromarray(grey)
    wide = grey.astype(np.uint16) * 257
    for name, variant in {
        "grey 1.PNG": image,
        "rgba.png": image.convert("RGBA"),
        "palette.png": image.convert("P"),
        "web.gif": image,
        "sixteen.png": Image.fromarray(wide),
        "sixteen.tif": Image.fromarray(wide),
        "big-endian.tif": Image.frombytes("I;16B", (32, 32), wide.astype(">u2").tobytes()),
        "long.tif": Image.fromarray(grey.astype(np.int32)),
        "float.tif": Image.fromarray((grey / 255).astype(np.float32)),
        "cmyk.tif": image.convert("RGB").convert("CMYK"),
        "größe.bmp": image.convert("RGB"),
    }.items():
        variant.save(name)
        loaded = load_image(name)
        assert loaded.mode == "RGB", name
        assert np.abs(np.asarray(loaded).astype(int) - grey[:, :, None]).max() <= 1, name
    # dark ones stay dark
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save("dark.png")
    assert load_image("dark.png").getextrema() == ((1, 1),) * 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode):
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    image.putpixel((1, 2), (200, 0, 0, 0))
    image.convert(mode).save("part.png")
    loaded = load_image("part.png")
    assert loaded.getpixel((1, 2)) == (255, 255, 255)
    assert loaded.getpixel((0, 0)) != (255, 255, 255)


def make_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
def test_a_photograph_is_turned_upright(orientation, ending):
    draw_image("plain.png", 3, size=(24, 16))
    with Image.open("plain.png") as plain:
        plain.save(f"a.{ending}", exif=make_exif(orientation))
    with Image.open(f"a.{ending}") as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    loaded = load_image(f"a.{ending}")
    assert np.array_equal(loaded, expected)
    assert loaded.size == ((24, 16) if orientation < 5 else (16, 24))


def write_jpeg(path, entries, extra):
    """Write a picture with these EXIF entries; return how it looks without them."""
    draw_image("plain.jpg", 3)
    jpg = Path("plain.jpg").read_bytes()
    data = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, count, value in entries:
        data += struct.pack("<HHI", tag, kind, count) + value
    data += struct.pack("<I", 0) + extra
    head = jpg[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2)
    Path(path).write_bytes(head + data + jpg[2:])
    return load_image("plain.jpg")


TURNED = (0x0112, 3, 1, b"\6\0\0\0")
RATIO = (0x011A, 10, 1, struct.pack("<I", 8 + 2 + 24 + 4))
# by what is odd: the entries, what follows them, and whether the picture is turned
ODD_EXIF = {
    "a fraction of -1 over 0": ([TURNED, RATIO], struct.pack("<ii", -1, 0), True),
    "width as text": ([(0x0100, 2, 4, b"128\0"), TURNED], b"", True),
    "an unknown kind": ([TURNED, (0x011A, 99, 1, b"\0\0\0\0")], b"", True),
    "an offset out of the file": ([TURNED, (0x010E, 2, 400, b"\0\xff\0\0")], b"", True),
    "an orientation as text": ([(0x0112, 2, 2, b"6\0\0\0")], b"", False),
    "an orientation of 0": ([(0x0112, 3, 1, b"\0\0\0\0")], b"", False),
    "an orientation of 9": ([(0x0112, 3, 1, b"\x09\0\0\0")], b"", False),
}


@pytest.mark.parametrize("name", ODD_EXIF)
def test_a_photograph_with_malformed_exif_is_turned_as_far_as_it_says_without_a_warning(name):
    (entries, extra, isTurned) = ODD_EXIF[name]
    plain = write_jpeg("a.jpg", entries, extra)
    expected = plain.transpose(Image.Transpose.ROTATE_270) if isTurned else plain
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        # with its filter of what PIL warns of, which pytest takes away
        load = runpy.run_module("pyimagesearch.support.images")["load_image"]
        seen.clear()
        assert np.array_equal(load("a.jpg"), expected)
    assert not seen


def test_a_png_with_much_text_is_read():
    draw_image("plain.png", 3)
    png = Path("plain.png").read_bytes()
    text = b"zTXt" + b"Comment\0\0" + zlib.compress(b"x" * (3 << 20), 9)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    Path("text.png").write_bytes(png[:33] + chunk + png[33:])
    assert np.array_equal(load_image("text.png"), load_image("plain.png"))


def test_large_jpegs_are_decoded_at_a_scale_that_keeps_what_the_network_sees():
    for size, imageSize, expected in (
        # a phone's picture, at a quarter; its short side keeps 3 * 224 pixels
        ((4032, 3024), 224, (1008, 756)),
        ((1343, 2000), 224, (1343, 2000)),
        ((1344, 2000), 224, (672, 1000)),
        ((4032, 3024), None, (4032, 3024)),
        # a phone's too, which is no attack
        ((20000, 10000), 224, (2500, 1250)),
    ):
        Image.new("L", size, 99).save("large.jpg")
        assert load_image("large.jpg", imageSize).size == expected


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.gif"])
def test_an_image_that_is_in_memory_is_read_from_there(name):
    draw_image(name, 3, size=(400, 300))
    data = Path(name).read_bytes()
    expected = load_image(name, 32)
    os.remove(name)
    assert np.array_equal(load_image(name, 32, data), expected)


UNREADABLE = "cannot be read as an image ({}); replace it, or convert it to JPEG"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", UNREADABLE.format("the file is empty")),
        (b"no image", UNREADABLE.format("no known format")),
        # a repository that was cloned without git-lfs, a download that was refused
        (LFS, "a pointer of Git LFS, not the file itself; run git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page, not the file itself; download it again"),
    ],
)
def test_what_is_no_image_is_said_in_the_same_words_wherever_it_is_read_from(data, text):
    Path("a.jpg").write_bytes(data)
    for inMemory in (None, data):
        with pytest.raises(ImageError) as caught:
            load_image("a.jpg", 32, inMemory)
        assert str(caught.value) == f"a.jpg: {text}"


def test_an_error_of_the_disk_keeps_its_number_and_gets_the_path(monkeypatch):
    draw_image("whole.jpg", 0)
    load = Mock(side_effect=OSError(errno.EIO, "Input/output error"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(OSError, match="Input/output error") as caught:
        load_image("whole.jpg")
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "whole.jpg")
    with pytest.raises(FileNotFoundError, match="gone.jpg"):
        load_image("gone.jpg")
    # where a broken image leads PIL in front of the file
    load.side_effect = OSError(errno.EINVAL, "Invalid argument")
    with pytest.raises(ImageError, match="whole.jpg"):
        load_image("whole.jpg")


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Image.Image, "load"), (Image.Image, "convert"), (ImageOps, "exif_transpose")],
)
def test_a_lack_of_memory_is_not_called_a_broken_image_and_turns_none(monkeypatch, owner, name):
    Image.new("L", (4, 4)).save("whole.jpg", exif=make_exif(6))
    monkeypatch.setattr(owner, name, Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        load_image("whole.jpg")
