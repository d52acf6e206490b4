"""A run in output/: how it starts, what it may change when resumed, and evaluations."""

import json
import os
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from helpers import CLASSES, DEFAULTS, call, draw_class_folders, draw_image, read_tree

from pyimagesearch import config
from pyimagesearch.support import devices, files, runs, settings
from pyimagesearch.support.errors import UserError


@pytest.fixture(autouse=True)
def ownClasses(monkeypatch):
    """Have config.py name few classes, a CPU and a constant of the user's own."""
    config.CLASSES = list(CLASSES)
    config.DEVICE = torch.device("cpu")
    monkeypatch.setattr(config, "DROPOUT", 0.1, raising=False)


def start(resume=False, **flags):
    """Start or resume a training, as a process of its own; return the settings that it has. What
    config holds before is what config.py says."""
    found = {}

    def main(argv):
        runs.start_run(Namespace(resume=resume, evaluate=False, weights=None, **flags))
        found.update(settings.read_config())

    call(main)
    return found


def read_refusal(**flags):
    """Return the line with which a training is refused that would be resumed."""
    with pytest.raises(UserError) as caught:
        start(resume=True, **flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read_record():
    return json.loads(Path(config.SETTINGS_PATH).read_text())


def test_the_settings_of_a_run_are_in_a_file_from_its_start():
    found = start(EPOCHS=3, LR=0.01)
    assert (found["EPOCHS"], found["LR"], found["SEED"]) == (3, 0.01, DEFAULTS["SEED"])
    record = read_record()
    assert record["flags"] == {"EPOCHS": 3, "LR": 0.01}
    # config.py as it is, constants of the user's own too
    assert record["config"] == settings.make_json(settings.read_config())
    assert record["config"]["DROPOUT"] == 0.1
    assert record["number of devices"] == 1
    time.strptime(record["started"], "%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize("flags", [{"EPOCHS": 0}, {"LR": -1.0}])
def test_a_start_with_a_wrong_flag_leaves_the_earlier_run_where_it_is(flags):
    start()
    Path(config.CHECKPOINT_PATH).touch()
    before = read_tree()
    with pytest.raises(UserError):
        start(**flags)
    assert read_tree() == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_start_with_a_wrong_flag_locks_and_writes_nothing(resume):
    if resume:
        start()
    before = read_tree()
    Path("output/.lock").unlink(missing_ok=True)
    with pytest.raises(UserError, match="^EPOCHS "):
        start(resume=resume, EPOCHS=0)
    assert read_tree() == before
    assert not os.path.exists("output/.lock")


@pytest.mark.parametrize("numDevices", [1, 3])
def test_a_run_knows_how_many_devices_share_a_batch(monkeypatch, numDevices):
    monkeypatch.setattr(devices, "count_devices", lambda: numDevices)
    found = []
    for resume in (False, True):
        args = Namespace(resume=resume, evaluate=False, weights=None)
        call(lambda argv, args=args: found.append(runs.start_run(args)))
    assert [run.numDevices for run in found] == [numDevices] * 2


def test_resume_where_nothing_is_begins_a_run_and_says_so(capsys):
    found = start(resume=True, EPOCHS=3)
    assert found["EPOCHS"] == 3
    assert f"no {config.SETTINGS_PATH} to resume: a new run begins" in capsys.readouterr().out
    assert read_record()["flags"] == {"EPOCHS": 3}


def test_a_run_of_an_older_version_is_refused():
    # as the version before wrote it
    record = {"IMAGE_SIZE": 224, "SEED": 42, "CLASSES": CLASSES, "number of devices": 1}
    files.write_file(config.SETTINGS_PATH, json.dumps(record).encode())
    line = read_refusal()
    assert "another version" in line
    assert "--resume" in line
    assert read_record() == record


def test_weights_without_a_checkpoint_are_not_overwritten_by_a_resumed_run():
    start()
    Path(config.MODEL_PATH).write_bytes(b"weights")
    before = read_tree()
    line = read_refusal(EPOCHS=30)
    assert f"{config.MODEL_PATH} is there, but no {config.CHECKPOINT_PATH}" in line
    assert read_tree() == before


def test_a_checkpoint_of_another_run_is_refused():
    start()
    torch.save({"started": "2000-01-01 00:00:00"}, config.CHECKPOINT_PATH)
    assert "another run" in read_refusal()


def test_a_resumed_run_has_the_settings_of_its_start_without_the_flags():
    found = start(EPOCHS=3, LR=0.01, SEED=7, IMAGE_SIZE=64, PRETRAINED=False)
    assert found["FREEZE_BATCH_NORM"] is False
    assert start(resume=True) == found
    # and again
    assert start(resume=True) == found


def test_config_py_of_a_resumed_run_is_written_by_nothing_else(monkeypatch):
    start(LR=0.01)
    before = dict(vars(config))
    monkeypatch.setattr(settings, "override_config", lambda values, reason: None)
    runs.start_run(Namespace(resume=True, evaluate=False, weights=None))
    runs.continue_record(settings.make_json(settings.read_config()), {"EPOCHS": 5})
    assert vars(config) == before


def test_epochs_edited_in_config_py_count_also_against_an_earlier_flag():
    start()
    config.EPOCHS = 30
    assert start(resume=True)["EPOCHS"] == 30
    # the newest counts, be it a flag or a line of config.py
    assert start(resume=True, EPOCHS=40)["EPOCHS"] == 40
    assert start(resume=True)["EPOCHS"] == 40
    config.EPOCHS = 50
    assert start(resume=True)["EPOCHS"] == 50
    assert start(resume=True)["EPOCHS"] == 50


def test_an_edit_of_epochs_counts_against_the_flag_of_the_start():
    start(EPOCHS=3)
    config.EPOCHS = 30
    assert start(resume=True)["EPOCHS"] == 30


def test_what_changes_no_result_may_be_edited():
    start()
    edits = {
        "NUM_WORKERS": 1,
        "PRED_BATCH_SIZE": 9,
        "TRAIN": "elsewhere/training",
        "DATA_PATH": "photos",
        "REPORT_PATH": "output/report.txt",
        "DEVICE": torch.device("cpu", 0),
    }
    for name, value in edits.items():
        setattr(config, name, value)
    for _ in range(2):
        found = start(resume=True)
        assert {name: found[name] for name in edits} == edits
    record = read_record()
    assert record["config"]["NUM_WORKERS"] == 1
    # but the record keeps the device of the start
    assert record["config"]["DEVICE"] == "cpu"


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("LR", 0.0001, 0.5),
        ("SEED", 42, 43),
        ("IMAGE_SIZE", 224, 64),
        ("LOCAL_BATCH_SIZE", 32, 16),
        ("MEAN", [0.485, 0.456, 0.406], [0.5, 0.5, 0.5]),
        ("STD", [0.229, 0.224, 0.225], [0.25, 0.25, 0.25]),
        ("CLASSES", ["Bread", "Egg", "Soup"], ["Bread", "Egg", "Pie"]),
        ("PRETRAINED", True, False),
        ("FREEZE_BATCH_NORM", None, False),
        # of the user's own
        ("DROPOUT", 0.1, 0.2),
    ],
)
def test_any_other_edit_of_config_py_is_refused_with_both_values_and_both_ways_on(
    name, before, now
):
    setattr(config, name, before)
    start()
    record = read_record()
    setattr(config, name, now)
    line = read_refusal()
    assert f"{name} is {before} in the run in output/ and {now} now" in line
    assert "set it back to resume, or start a new run without --resume" in line
    # which is then as it was
    assert read_record() == record
    setattr(config, name, before)
    start(resume=True)


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [("LR", 0.0001, 0.5), ("SEED", 42, 43), ("IMAGE_SIZE", 224, 64), ("PRETRAINED", True, False)],
)
def test_a_flag_that_differs_from_the_run_is_refused(name, before, now):
    start()
    line = read_refusal(**{name: now})
    assert f"{name} is {before} in the run in output/ and {now} now" in line
    # the same value is no other
    start(resume=True, **{name: before})


def test_a_flag_that_differs_from_the_flag_of_the_start_is_refused_with_that():
    start(LR=0.01)
    assert "LR is 0.01 in the run in output/ and 0.02 now" in read_refusal(LR=0.02)
    # also where config.py says the same
    assert "LR is 0.01 in the run in output/ and 0.0001 now" in read_refusal(LR=0.0001)
    # an edit as well
    config.LR = 0.02
    assert "LR is 0.01 in the run in output/ and 0.02 now" in read_refusal()


def test_an_object_of_the_users_own_is_the_same_in_another_process(monkeypatch):
    class Schedule:
        pass

    monkeypatch.setattr(config, "SCHEDULE", Schedule(), raising=False)
    start()
    # which has another address
    keep = config.SCHEDULE
    monkeypatch.setattr(config, "SCHEDULE", Schedule())
    assert config.SCHEDULE is not keep
    start(resume=True)


def test_one_line_names_every_difference():
    start()
    (config.LR, config.DROPOUT) = (0.5, 0.2)
    line = read_refusal(SEED=7, EPOCHS=9)
    for name in ("LR is 0.0001", "DROPOUT is 0.1", "SEED is 42"):
        assert name in line
    assert "EPOCHS" not in line


def test_a_constant_of_the_users_own_that_came_or_went_is_refused(monkeypatch):
    start()
    monkeypatch.setattr(config, "WARM_UP", 3, raising=False)
    assert "WARM_UP is None in the run in output/ and 3 now" in read_refusal()
    monkeypatch.delattr(config, "WARM_UP")
    monkeypatch.delattr(config, "DROPOUT")
    assert "DROPOUT is 0.1 in the run in output/ and None now" in read_refusal()


def test_a_checkpoint_that_stayed_where_config_py_had_it_is_not_left_behind():
    start()
    earlier = config.CHECKPOINT_PATH
    files.write_file(earlier, b"twenty epochs")
    record = read_record()
    (config.CHECKPOINT_PATH, config.MODEL_PATH) = ("disk/checkpoint.pth", "disk/food.pth")
    line = read_refusal()
    for text in (f"still {earlier}", "move it to disk/checkpoint.pth", "CHECKPOINT_PATH"):
        assert text in line
    assert read_record() == record
    # where it was moved too, the run goes on
    os.remove(earlier)
    start(resume=True)
    assert read_record()["config"]["CHECKPOINT_PATH"] == "disk/checkpoint.pth"


def test_a_path_of_the_users_own_may_come_and_go(monkeypatch):
    monkeypatch.setattr(config, "NOTES_PATH", "notes.txt", raising=False)
    start()
    monkeypatch.delattr(config, "NOTES_PATH")
    start(resume=True)
    assert read_record()["config"]["NOTES_PATH"] is None


def test_the_same_value_by_another_way_is_no_other():
    found = start(LR=0.01, SEED=7)
    # what was a flag is now a line of config.py
    (config.LR, config.SEED) = (0.01, 7)
    for _ in range(2):
        again = start(resume=True)
        assert (again["LR"], again["SEED"]) == (found["LR"], found["SEED"])
    # or the other way round
    start(resume=True, SEED=7)


def test_classes_in_another_order_are_the_same():
    start()
    config.CLASSES = ["Soup", "Egg/fried", "Bread"]
    start(resume=True)
    config.CLASSES = ["Soup", "Egg"]
    assert "CLASSES is" in read_refusal()


def test_another_batch_size_of_config_py_for_another_kind_of_device_is_no_edit(monkeypatch):
    config.LOCAL_BATCH_SIZE = 32
    start()
    # config.py on a machine with a GPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    (config.DEVICE, config.LOCAL_BATCH_SIZE) = (torch.device("cuda"), 128)
    assert start(resume=True)["LOCAL_BATCH_SIZE"] == 32
    # and again there
    assert start(resume=True)["LOCAL_BATCH_SIZE"] == 32
    # and back
    (config.DEVICE, config.LOCAL_BATCH_SIZE) = (torch.device("cpu"), 32)
    assert start(resume=True)["LOCAL_BATCH_SIZE"] == 32


@pytest.mark.parametrize(
    ("numDevices", "perDevice", "rate"), [(1, 12, 0.03), (3, 4, 0.01), (6, 2, 0.005)]
)
def test_a_run_goes_on_with_the_same_batch_and_rate_on_other_devices(
    monkeypatch, numDevices, perDevice, rate
):
    monkeypatch.setattr(devices, "count_devices", lambda: 3)
    found = start(LOCAL_BATCH_SIZE=4, LR=0.01)
    assert found["LOCAL_BATCH_SIZE"] == 4
    monkeypatch.setattr(devices, "count_devices", lambda: numDevices)
    for _ in range(2):
        found = start(resume=True)
        assert found["LOCAL_BATCH_SIZE"] == perDevice
        assert found["LR"] == pytest.approx(rate)
    # the file keeps those of the start
    record = read_record()
    assert record["number of devices"] == 3
    assert (record["flags"]["LOCAL_BATCH_SIZE"], record["flags"]["LR"]) == (4, 0.01)
    # as a flag too they are those of the start
    start(resume=True, LOCAL_BATCH_SIZE=4, LR=0.01)


@pytest.mark.parametrize(
    ("batch", "numBefore", "numDevices", "counts"),
    [(4, 3, 5, "1, 2, 3, 4, 6, 12"), (1, 2, 3, "1, 2"), (1, 1, 2, "1")],
)
def test_an_uneven_batch_is_refused_with_the_numbers_of_devices_that_share_it(
    monkeypatch, batch, numBefore, numDevices, counts
):
    monkeypatch.setattr(devices, "count_devices", lambda: numBefore)
    start(LOCAL_BATCH_SIZE=batch)
    record = read_record()
    monkeypatch.setattr(devices, "count_devices", lambda: numDevices)
    line = read_refusal()
    assert f"total batch of {batch * numBefore} does not divide by {numDevices} devices" in line
    assert line.endswith(f"; resume on one of {counts}")
    assert read_record() == record


def test_a_second_training_in_the_same_folder_is_refused_until_the_first_ends(capsys):
    os.mkdir("output")
    first = FileLock("output/.lock")
    first.acquire()
    args = Namespace(resume=False, evaluate=False, weights=None)
    with pytest.raises(UserError, match=f"another training .* {Path('output').absolute()}"):
        runs.start_run(args)
    # which writes nothing
    assert read_tree() == {}
    first.release()
    runs.start_run(args)
    # its own lock then keeps others out
    with pytest.raises(Timeout):
        FileLock("output/.lock").acquire(blocking=False)
    assert "cannot be locked" not in capsys.readouterr().out


def test_an_earlier_run_is_moved_aside_at_the_start_its_settings_first(monkeypatch):
    start(SEED=7)
    for path in (config.CHECKPOINT_PATH, config.MODEL_PATH, config.REPORT_PATH):
        files.write_file(path, b"of the first")
    before = read_tree()
    moved = []
    move = files.move_file

    def note_and_move(path, target):
        moved.append(path)
        move(path, target)

    monkeypatch.setattr(files, "move_file", note_and_move)
    start(SEED=8)
    assert moved[0] == config.SETTINGS_PATH
    assert len(moved) == 4
    (folder,) = Path("output").glob("run-*")
    assert read_tree(folder) == before
    # nothing of it is left beside the new settings
    left = {path.name for path in Path("output").iterdir() if path.is_file()}
    assert left == {".lock", "settings.json"}
    assert read_record()["flags"] == {"SEED": 8}


def save_checkpoint_and_weights():
    """Leave what stands for them after an epoch of the run in output/."""
    torch.save({"started": read_record()["started"]}, config.CHECKPOINT_PATH)
    Path(config.MODEL_PATH).touch()


def test_a_run_that_was_moved_back_can_be_resumed():
    first = start(SEED=7)
    save_checkpoint_and_weights()
    start(SEED=8)
    save_checkpoint_and_weights()
    (folder,) = Path("output").glob("run-*")
    for path in folder.iterdir():
        path.replace(Path("output", path.name))
    assert start(resume=True) == first


def test_a_start_that_trained_nothing_is_overwritten(capsys):
    start(SEED=7)
    start(SEED=8)
    assert read_record()["flags"] == {"SEED": 8}
    assert sorted(os.listdir("output")) == [".lock", "settings.json"]
    assert "moved" not in capsys.readouterr().out


@pytest.fixture
def weightsPath():
    """Return the path of what stands for weights, beside drawn test images."""
    draw_class_folders(counts=(1, 1, 2))
    files.write_file("models/best.v2.pth", b"weights")
    return "models/best.v2.pth"


def start_evaluation(path):
    """Start an evaluation of the weights at path; return the folder of its report."""
    run = runs.start_run(Namespace(resume=False, evaluate=True, weights=path))
    return run.folder


def test_an_evaluation_has_a_folder_that_says_what_it_is_about(weightsPath):
    folder = start_evaluation(weightsPath)
    assert os.path.dirname(folder) == "output"
    assert os.path.basename(folder).startswith("evaluation-best.v2-")
    record = json.loads(Path(folder, "settings.json").read_text())
    assert record["weights"] == os.path.abspath(weightsPath)
    assert record["digest of the weights"] == files.digest_file(weightsPath)
    assert record["images"] == os.path.abspath(config.TEST)
    assert record["number of images"] == 6
    assert record["flags"] == {}


def test_two_evaluations_of_one_second_have_a_folder_each(weightsPath, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda text, *_: text.replace("%", ""))
    folders = {start_evaluation(weightsPath) for _ in range(3)}
    assert len(folders) == 3
    for folder in folders:
        assert os.path.exists(os.path.join(folder, "settings.json"))


IMAGES_DIGEST = "digest of their names and sizes"


def test_evaluations_of_other_weights_or_images_have_other_digests(weightsPath):
    records = []
    draw_first = Path(config.TEST, "Bread", "0.jpg")
    changes = [
        lambda: None,
        lambda: Path(weightsPath).write_bytes(b"others"),
        lambda: draw_image(draw_first, 5, size=(64, 64)),
    ]
    for change in changes:
        change()
        folder = start_evaluation(weightsPath)
        record = json.loads(Path(folder, "settings.json").read_text())
        records.append((record["digest of the weights"], record[IMAGES_DIGEST]))
    (first, otherWeights, otherImages) = records
    assert first[0] != otherWeights[0]
    assert first[1] == otherWeights[1]
    assert otherWeights[0] == otherImages[0]
    assert otherWeights[1] != otherImages[1]


def test_an_evaluation_records_its_flags_and_has_them(weightsPath):
    args = Namespace(resume=False, evaluate=True, weights=weightsPath, LOCAL_BATCH_SIZE=3)
    run = runs.start_run(args)
    assert run.record["flags"] == {"LOCAL_BATCH_SIZE": 3}
    assert config.LOCAL_BATCH_SIZE == 3


def test_an_evaluation_leaves_the_run_in_output_as_it_is(weightsPath):
    start(SEED=7)
    Path(config.MODEL_PATH).touch()
    before = read_tree()
    start_evaluation(weightsPath)
    after = read_tree()
    assert {name: after[name] for name in before} == before
