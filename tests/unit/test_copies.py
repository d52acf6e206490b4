"""What prepare copied: its record, and who may copy."""

import json
import os
from pathlib import Path
from threading import Event, Thread

import pytest
from filelock import FileLock, Timeout
from helpers import read_tree

from pyimagesearch import config
from pyimagesearch.support import files
from pyimagesearch.support.copies import (
    is_own,
    list_copies,
    normalize_path,
    read_record,
    record_copies,
    write_record,
)
from pyimagesearch.support.errors import UserError
from pyimagesearch.support.plan import Photograph, Plan

RECORD = Path("dataset", "copies.json")


def test_paths_are_compared_whatever_their_case_and_their_detours():
    assert normalize_path("Dataset//training/./Egg/A.JPG") == normalize_path(
        "dataset/training/Egg/a.jpg"
    )
    assert normalize_path("training/Egg/a.jpg") != normalize_path("training/Egg/b.jpg")


def test_copies_are_the_images_of_the_three_splits_by_their_paths():
    assert list_copies() == {}
    names = ("training/Egg/A.JPG", "validation/Egg/b.jpg", "evaluation/Noodles/Pasta/c.png")
    # which are no copies
    others = ("training/Egg/notes.txt", "training/Egg/.hidden.jpg", "other/Egg/d.jpg")
    for name in (*names, *others):
        files.write_file(f"dataset/{name}", b"")
    expected = {f"dataset/{name}".lower(): f"dataset/{name}" for name in names}
    assert list_copies() == expected


def test_a_record_is_read_as_it_was_written_and_is_empty_at_first():
    assert read_record() == {"SEED": None, "copies": {}, "copying": {}}
    # the last is a name that is no text
    copies = {"dataset/training/egg/é.jpg": "1", os.fsdecode(b"\xff.jpg"): "2"}
    expected = {"SEED": 7, "copies": copies, "copying": {"a": "3"}}
    write_record(7, copies, {"a": "3"})
    assert read_record() == expected
    assert json.loads(RECORD.read_text()) == expected
    # one of an earlier version
    del expected["copying"]
    RECORD.write_text(json.dumps(expected))
    assert read_record() == expected | {"copying": {}}


def test_prepare_knows_what_it_copied_or_was_copying_by_place_and_digest():
    record = {"SEED": 42, "copies": {"a": "1", "b": "2"}, "copying": {"b": "3", "c": "4"}}
    for place, digest in (("a", "1"), ("b", "2"), ("b", "3"), ("c", "4")):
        assert is_own(record, place, digest)
    for place, digest in (("a", "2"), ("b", "1"), ("c", "1"), ("d", "1")):
        assert not is_own(record, place, digest)


def make_plan(*names):
    """Return a Plan of photographs of these names that belong in TRAIN; the digest of each is its
    name."""
    photographs = []
    for name in names:
        photographs.append(Photograph(f"photos/Egg/{name}", "photos", "Egg", name))
        (photographs[-1].destiDir, photographs[-1].digest) = (config.TRAIN, name)
    return Plan(["photos"] * 3, photographs, {}, {}, read_record(), seed=config.SEED)


def is_free():
    """Return whether nobody holds the lock of BASE_PATH."""
    try:
        with FileLock("dataset/.lock", blocking=False):
            return True
    except Timeout:
        return False


def test_while_images_are_copied_the_folder_is_locked_and_the_splits_are_there():
    with record_copies(make_plan("A.jpg")):
        assert not is_free()
        for destiDir in (config.TRAIN, config.VAL, config.TEST):
            assert os.path.isdir(destiDir)
    copies = {"dataset/training/egg/a.jpg": "A.jpg"}
    assert read_record() == {"SEED": 42, "copies": copies, "copying": {}}
    # until the script ends
    assert not is_free()
    files.locks.close()
    assert is_free()


def test_a_prepare_that_is_killed_leaves_the_record_of_what_was_copied_before_and_what_was_begun():
    with record_copies(make_plan("a.jpg")):
        # from the start, so that the SEED is known of what a killed one copied
        assert (read_record()["SEED"], read_record()["copies"]) == (42, {})
    before = read_record()
    with pytest.raises(KeyboardInterrupt), record_copies(make_plan("a.jpg", "b.jpg")):
        raise KeyboardInterrupt
    copying = {f"dataset/training/egg/{name}": name for name in ("a.jpg", "b.jpg")}
    assert read_record() == before | {"copying": copying}
    # a record has what was copied last, and no more
    with record_copies(make_plan("b.jpg")):
        pass
    assert read_record()["copies"] == {"dataset/training/egg/b.jpg": "b.jpg"}
    assert read_record()["copying"] == {}


def test_what_was_there_already_is_recorded_only_if_prepare_has_copied_it():
    write_record(
        42, {"dataset/training/egg/a.jpg": "a.jpg"}, {"dataset/training/egg/b.jpg": "b.jpg"}
    )
    plan = make_plan("a.jpg", "b.jpg", "hand.jpg", "new.jpg")
    for photograph in plan.photographs[:3]:
        photograph.copyDigest = photograph.digest
    with record_copies(plan):
        assert set(read_record()["copies"].values()) == {"a.jpg", "b.jpg"}
        assert set(read_record()["copying"].values()) == {"new.jpg"}
    assert set(read_record()["copies"].values()) == {"a.jpg", "b.jpg", "new.jpg"}


def test_a_prepare_with_another_seed_that_waited_for_the_first_copies_nothing():
    config.SEED = 7
    plan = make_plan("a.jpg")
    # meanwhile, by the first
    write_record(42, {}, {})
    files.write_file(os.path.join(config.TRAIN, "Egg", "b.jpg"), b"")
    with pytest.raises(UserError, match="split with SEED 42, not 7"), record_copies(plan):
        pass
    assert read_record() == {"SEED": 42, "copies": {}, "copying": {}}
    # where no photograph is held out the seed has no say
    plan.seed = None
    with record_copies(plan):
        pass


def test_the_partial_files_of_killed_prepares_go_and_nothing_else():
    for destiDir in (config.TRAIN, config.VAL, config.TEST):
        files.write_file(os.path.join(destiDir, ".host-123.partial"), b"half")
        files.write_file(os.path.join(destiDir, "Egg", "0.jpg"), b"whole")
    with record_copies(make_plan()):
        names = [name for name in read_tree("dataset") if name != "copies.json"]
        assert [os.path.basename(name) for name in names] == ["0.jpg"] * 3


def test_where_the_folder_cannot_be_locked_partial_files_may_be_of_a_living_prepare(
    monkeypatch, capsys
):
    files.write_file(os.path.join(config.TRAIN, ".host-123.partial"), b"half")
    monkeypatch.setattr(files, "lock_folder", lambda *args, **options: False)
    with record_copies(make_plan()):
        assert "training/.host-123.partial" in read_tree("dataset")


def test_a_second_prepare_waits_for_the_first_and_only_then_touches_its_files():
    partial = os.path.join(config.TRAIN, ".host-123.partial")
    files.write_file(partial, b"of the first")
    entered = Event()

    def prepare():
        with record_copies(make_plan()):
            entered.set()

    first = FileLock("dataset/.lock", thread_local=False)
    first.acquire()
    second = Thread(target=prepare, daemon=True)
    second.start()
    assert not entered.wait(0.3)
    assert os.path.exists(partial)
    first.release()
    second.join(10)
    assert entered.is_set()
    assert not os.path.exists(partial)
