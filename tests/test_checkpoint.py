import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import train_distributed
from pyimagesearch import checkpoint, config, devices, food_classifier, images
from pyimagesearch.cli import UserError

import pytest
import torch
from conftest import (
    CLASSES,
    TinyNet,
    draw_class_folders,
    draw_image,
    read_forked,
    run_forked,
    start_forked,
    torchrun_envs,
    wait_for_line,
    wait_until,
)

# of 24 images: 5 steps an epoch, the last with 4
FLAGS = "--image-size 64 --epochs 4 --num-workers 2 --local-batch-size 5 --no-pretrained --lr 0.001"
FLAGS = FLAGS.split()


def assert_same(one, other):
    """Compare two states, dicts and lists of tensors and plain values, bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The working directory of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    draw_class_folders(folder / "dataset", counts=(8, 2, 3))
    run = run_forked("train_distributed.py", *FLAGS, cwd=folder)
    assert run.returncode == 0, run.stderr
    return folder


def assert_same_outcome(folder, uninterrupted):
    for path in (config.MODEL_PATH, config.CHECKPOINT_PATH):
        assert_same(
            checkpoint.load_state(str(folder / path)),
            checkpoint.load_state(str(uninterrupted / path)),
        )
    report = (folder / config.REPORT_PATH).read_text()
    assert report == (uninterrupted / config.REPORT_PATH).read_text()


def test_killed_at_any_moment_and_resumed_equals_uninterrupted(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted / "dataset", tmp_path / "dataset")
    moments = {
        # in epoch 1, before there is a checkpoint
        "step:3": 0,
        # in the middle of writing the first checkpoint
        "write:0": 0,
        # in epoch 2, after one checkpoint
        "step:8": 1,
        # the first checkpoint of this run, that of epoch 2, is in place; the next is not
        "replace:1": 2,
        # in the middle of writing the checkpoint of epoch 4
        "write:1": 3,
        # all epochs done, in the middle of writing the weights
        "write:1 ": 4,
        # the weights in place, no report yet
        "report:0": 4,
    }
    for moment, epoch in moments.items():
        env = {"KILL_AT": moment.strip()}
        # as a user does: there is nothing to resume before the first checkpoint
        flags = ["--resume"] if os.path.exists(config.CHECKPOINT_PATH) else FLAGS
        run = run_forked("tests/killed_training.py", *flags, env=env)
        assert run.returncode == -signal.SIGKILL, run.stderr
        found = os.path.exists(config.CHECKPOINT_PATH)
        assert (checkpoint.load_state(config.CHECKPOINT_PATH)["epoch"] if found else 0) == epoch
        assert not os.path.exists(config.REPORT_PATH)
    run = run_forked("train_distributed.py", "--resume")
    assert run.returncode == 0, run.stderr
    assert "[INFO] resuming after epoch 4...\n" in run.stdout
    assert_same_outcome(tmp_path, uninterrupted)


def test_more_epochs_train_on_as_if_they_had_been_asked_for_at_once(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted / "dataset", tmp_path / "dataset")
    for flags in ([*FLAGS, "--epochs", "2"], ["--resume", "--epochs", "4", "--num-workers", "1"]):
        run = run_forked("train_distributed.py", *flags)
        assert run.returncode == 0, run.stderr
    assert (
        "resuming after epoch 2...\n[INFO] training the network...\n[INFO] EPOCH: 3/4\n"
        in run.stdout
    )
    assert_same_outcome(tmp_path, uninterrupted)


def assert_group_is_gone(process):
    """Assert that no process is left of a session that process began."""
    with pytest.raises(ProcessLookupError):
        # a worker that has ended may wait a moment for the system to notice
        for _ in range(50):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("numbers", "numWorkers", "phase"),
    [
        ([signal.SIGINT], "0", "EPOCH: 1/"),
        ([signal.SIGINT], "2", "training the network"),
        ([signal.SIGINT] * 2, "2", "evaluating network"),
        ([signal.SIGTERM], "2", "EPOCH: 1/"),
        ([signal.SIGTERM], "0", "evaluating network"),
        ([signal.SIGTERM, signal.SIGINT], "2", "EPOCH: 2/"),
    ],
)
def test_a_signal_ends_a_training_at_once_and_it_can_go_on(
    uninterrupted, tmp_path, numbers, numWorkers, phase
):
    shutil.copytree(uninterrupted / "dataset", "dataset")
    flags = [*FLAGS, "--num-workers", numWorkers]
    process = start_forked("train_distributed.py", *flags, before=os.setsid)
    wait_for_line(process, phase)
    start = time.monotonic()
    for number in numbers:
        # as a terminal does, to the script and its workers; SIGTERM comes to the script alone
        send = os.killpg if number == signal.SIGINT else os.kill
        # the first may have ended it
        with suppress(ProcessLookupError):
            send(process.pid, number)
    run = read_forked(process)
    assert time.monotonic() - start < 5
    assert run.returncode in {128 + number for number in numbers}, run.stderr
    line = "\n[INFO] interrupted; add --resume to continue after the last completed epoch\n"
    assert run.stderr == line
    assert_group_is_gone(process)
    flags = ["--resume"] if os.path.exists(config.CHECKPOINT_PATH) else flags
    assert run_forked("train_distributed.py", *flags).returncode == 0
    assert_same_outcome(tmp_path, uninterrupted)


def test_ctrl_c_does_not_end_a_run_that_ignores_it(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted / "dataset", tmp_path / "dataset")
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    process = start_forked("train_distributed.py", *FLAGS, "--epochs", "20", before=ignore)
    for epoch in range(1, 6):
        # in the course of training, not before
        wait_for_line(process, f"EPOCH: {epoch}/20")
        os.kill(process.pid, signal.SIGINT)
    assert read_forked(process).returncode == 0


def test_a_full_disk_keeps_the_checkpoint_before(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in Path("output").iterdir()}
    # without workers, whose shared memory is limited as well
    flags = [*FLAGS, "--resume", "--epochs", "6", "--num-workers", "0"]
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2**13, 2**13))
    run = run_forked("train_distributed.py", *flags, before=limit)
    assert run.returncode == 1
    assert "[ERROR] output/checkpoint.pth: cannot be written (File too large)" in run.stderr
    assert "Traceback" not in run.stderr
    assert {path: path.read_bytes() for path in Path("output").iterdir()} == before


@pytest.fixture
def tinyRun(monkeypatch):
    """Let train(*flags) run train_distributed.py here, with a small network; a second each."""
    draw_class_folders(Path("dataset"))
    config.CLASSES = list(CLASSES)
    monkeypatch.setattr(food_classifier, "densenet121", lambda weights: TinyNet())

    def train(*flags):
        argv = ["train_distributed.py", *FLAGS, "--num-workers", "0", *flags]
        monkeypatch.setattr("sys.argv", argv)
        train_distributed.main()

    return train


def read_run(folder):
    """Return the files of a run by name; those of other runs and the lock are not its own."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.suffix}


def test_a_new_training_moves_an_earlier_one_aside_finished_or_not(tinyRun, capsys, monkeypatch):
    tinyRun("--epochs", "1")
    Path(config.RESULTS_PATH).write_text("predictions")
    finished = read_run("output")
    for epoch in (0, 1):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            # dies in its first epoch, then in its second
            left = [(1.0, 1.0, [])] * epoch
            patch.setattr(train_distributed, "evaluate", lambda *_, r=left: r.pop() if r else 1 / 0)
            tinyRun()
        if epoch == 0:
            # a start that came to nothing costs nothing
            assert read_run("output") == finished
            assert not list(Path("output").glob("run-*"))
    unfinished = read_run("output")
    assert sorted(unfinished) == ["checkpoint.pth", "settings.json"]
    (folder,) = Path("output").glob("run-*")
    assert f"files of an earlier run were moved to {folder}..." in capsys.readouterr().out
    assert read_run(folder) == finished
    # both may have ended within the same second
    tinyRun("--epochs", "1")
    runs = [read_run(folder) for folder in Path("output").glob("run-*")]
    assert sorted(runs, key=len) == sorted([unfinished, finished], key=len)


def test_a_disk_that_is_full_at_the_first_checkpoint_keeps_the_earlier_run(tinyRun, monkeypatch):
    tinyRun("--epochs", "1")
    before = read_run("output")

    def fail(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(UserError, match="^output.checkpoint.pth: cannot be written .No space left"):
        tinyRun("--seed", "7")
    assert read_run("output") == before
    assert not list(Path("output").glob("run-*"))


def test_resume_without_a_checkpoint_ends_in_one_line(tinyRun, monkeypatch):
    with pytest.raises(UserError, match="^output.checkpoint.pth: nothing to resume; leave out"):
        tinyRun("--resume")
    # torchrun starts the same command again and again
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    tinyRun("--resume", "--epochs", "1")
    assert checkpoint.load_state(config.CHECKPOINT_PATH)["epoch"] == 1


def test_resume_takes_the_settings_of_the_first_run(tinyRun, monkeypatch, capsys):
    tinyRun("--epochs", "1", "--seed", "7")
    (config.SEED, config.LR, config.IMAGE_SIZE, config.EPOCHS) = (42, 0.01, 224, 20)
    (config.PRETRAINED, config.STD, config.LOCAL_BATCH_SIZE) = (True, [0.5] * 3, 32)
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["train_distributed.py", "--resume", "--epochs", "2"])
    train_distributed.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "taken from the checkpoint" in line] == [
        "[INFO] taken from the checkpoint: IMAGE_SIZE = 64, SEED = 7, PRETRAINED = False, "
        "STD = [0.229, 0.224, 0.225], LR = 0.001, LOCAL_BATCH_SIZE = 5..."
    ]
    before = checkpoint.load_state(config.CHECKPOINT_PATH)
    assert before["epoch"] == 2
    # a flag that is given must not differ
    flags = ["--resume", "--lr", "0.01", "--image-size", "128"]
    monkeypatch.setattr("sys.argv", ["train_distributed.py", *flags])
    line = (
        "^IMAGE_SIZE is 64 in output.checkpoint.pth and 128 in this run; LR is 0.001 in .* and 0.01"
    )
    with pytest.raises(UserError, match=line):
        train_distributed.main()


def test_other_devices_go_on_with_the_same_batch_and_rate_in_all(tinyRun, monkeypatch):
    monkeypatch.setattr(devices, "count_devices", lambda: 3)
    tinyRun("--epochs", "1", "--local-batch-size", "4", "--lr", "0.0001")
    for count, batchSize, rate in ((1, 12, 0.0003), (6, 2, 0.00005), (2, 6, 0.00015)):
        monkeypatch.setattr(devices, "count_devices", lambda count=count: count)
        monkeypatch.setattr("sys.argv", ["train_distributed.py", "--resume", "--epochs", "1"])
        train_distributed.main()
        assert (config.LOCAL_BATCH_SIZE, config.LR) == (batchSize, rate)
    monkeypatch.setattr(devices, "count_devices", lambda: 5)
    with pytest.raises(
        UserError, match="^the batch cannot be split evenly between 5 devices, as .* has 3"
    ):
        train_distributed.main()


def test_a_second_training_in_a_directory_ends_at_once(tinyRun):
    os.mkdir("output")
    lock = "import filelock; lock = filelock.FileLock('output/.lock'); lock.acquire(); "
    wait = "import time; print('locked', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", lock + wait]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    holder.stdout.readline()
    with pytest.raises(UserError, match="^output: another training is running in this directory"):
        tinyRun()
    assert not os.path.exists(config.CHECKPOINT_PATH)
    # the lock dies with its process
    holder.kill()
    holder.communicate()
    tinyRun("--epochs", "1")


def test_a_killed_writer_leaves_a_file_that_the_next_training_removes(tinyRun):
    Path("output").mkdir()
    partial = Path("output/checkpoint.pth.123.partial")
    partial.write_text("half")
    tinyRun("--epochs", "1")
    assert not partial.exists()


def test_resume_with_nothing_left_to_train_says_so_and_reports(tinyRun, capsys):
    tinyRun("--epochs", "2")
    Path(config.REPORT_PATH).unlink()
    capsys.readouterr()
    tinyRun("--epochs", "1", "--resume")
    assert "[INFO] nothing left to train (EPOCHS = 1)..." in capsys.readouterr().out
    assert os.path.exists(config.REPORT_PATH)


def test_a_resumed_run_needs_no_imagenet_weights_and_compares_before_it_builds(
    tinyRun, monkeypatch
):
    tinyRun("--epochs", "1", "--pretrained")
    asked = []
    monkeypatch.setattr(
        food_classifier, "densenet121", lambda weights: asked.append(weights) or TinyNet()
    )
    tinyRun("--epochs", "2", "--pretrained", "--resume")
    assert asked == [None]
    with pytest.raises(UserError, match="^SEED is 42 in output.checkpoint.pth and 7 in this run; "):
        tinyRun("--epochs", "2", "--pretrained", "--resume", "--seed", "7")
    assert asked == [None]


def test_the_state_of_the_gradient_scaler_survives_a_resume(tinyRun, monkeypatch):
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.float16)
    # so high that the first steps overflow and are skipped; later it grows again
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**24, growth_interval=4)
    monkeypatch.setattr(train_distributed.torch.amp, "GradScaler", scaler)
    tinyRun()
    whole = checkpoint.load_state(config.CHECKPOINT_PATH)
    for flags in (["--epochs", "2"], ["--resume"]):
        tinyRun(*flags)
        state = checkpoint.load_state(config.CHECKPOINT_PATH)
        assert 1 < state["scaler"]["scale"] < 2.0**24
        steps = {int(values["step"]) for values in state["opt"]["state"].values()}
        # of 3 steps in each epoch
        assert max(steps) < 3 * state["epoch"]
    assert_same(state, whole)


def test_images_that_changed_since_the_checkpoint_are_said(tinyRun, capsys):
    tinyRun("--epochs", "1")
    Path("dataset/training/Egg/0.jpg").unlink()
    capsys.readouterr()
    tinyRun("--epochs", "2", "--resume")
    lines = [line for line in capsys.readouterr().out.splitlines() if " changed: " in line]
    assert len(lines) == 1
    assert re.fullmatch(
        r"\[INFO\] the training set changed: 15 images \(\w{8}\) then, "
        r"14 images \(\w{8}\) now\.\.\.",
        lines[0],
    )


@pytest.mark.parametrize("name", ["size", "path", "label"])
def test_the_digest_of_images_tells_their_paths_sizes_and_labels(name):
    draw_class_folders(Path("dataset"))
    before = images.describe_images(config.TRAIN)
    Path("dataset/training/notes.txt").write_text("no image")
    assert images.describe_images(config.TRAIN) == before
    path = Path("dataset/training/Egg/0.jpg")
    if name == "size":
        path.write_bytes(path.read_bytes() + b" ")
    else:
        path.rename(path.with_name("7.jpg") if name == "path" else "dataset/training/Soup/7.jpg")
    assert images.describe_images(config.TRAIN) != before
    assert images.describe_images(config.TRAIN).startswith("15 images (")


def test_a_finished_training_is_only_evaluated_again(tinyRun, capsys, monkeypatch):
    tinyRun()
    weights = checkpoint.load_state(config.MODEL_PATH)
    shutil.move("output", "elsewhere")
    os.mkdir("output")
    shutil.copy("elsewhere/checkpoint.pth", "output")
    monkeypatch.setattr(train_distributed, "train_one_epoch", None)
    tinyRun("--resume")
    assert_same(checkpoint.load_state(config.MODEL_PATH), weights)
    for path in (config.REPORT_PATH, config.PLOT_PATH, config.CONFUSION_PATH):
        assert os.path.exists(path)


def test_a_checkpoint_holds_all_that_the_training_needs(tinyRun):
    tinyRun("--epochs", "1")
    state = checkpoint.load_state(config.CHECKPOINT_PATH)
    assert {"model", "opt", "lrScheduler", "scaler", "epoch", "H"} < set(state)
    assert state["record"]["CLASSES"] == ["Bread", "Egg", "Soup"]
    assert state["record"]["IMAGE_SIZE"] == 64
    assert state["H"].keys() == {"train_loss", "train_acc", "val_loss", "val_acc"}


def test_a_loss_that_is_not_a_number_keeps_the_last_good_checkpoint(tinyRun, monkeypatch):
    # 15 images in batches of 5: the loss breaks in the third step of epoch 2
    calls = []

    class Breaking(torch.nn.CrossEntropyLoss):
        def forward(self, pred, y):
            calls.append(self.training and pred.requires_grad)
            loss = super().forward(pred, y)
            return loss * float("nan") if calls.count(True) == 6 else loss

    monkeypatch.setattr(train_distributed.nn, "CrossEntropyLoss", Breaking)
    with pytest.raises(UserError, match="training diverged: the loss is not a number"):
        tinyRun()
    state = checkpoint.load_state(config.CHECKPOINT_PATH)
    assert state["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert not os.path.exists(config.MODEL_PATH)


def test_order_and_augmentation_of_an_epoch_depend_on_seed_and_epoch_alone(tinyRun, monkeypatch):
    seen = []

    def note_images(model, loader, lossFunc, opt, scaler):
        seen.append(torch.cat([x for x, _ in loader]))
        opt.step()
        return 0.0, 0.0

    monkeypatch.setattr(train_distributed, "train_one_epoch", note_images)
    for workers in ("0", "2"):
        # the second time something else ran before
        torch.rand(5)
        tinyRun("--epochs", "2", "--num-workers", workers)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])
    tinyRun("--epochs", "1", "--num-workers", "2", "--seed", "7")
    assert not torch.equal(seen[0], seen[4])


def test_write_file_makes_the_folder_and_leaves_nothing_beside_the_file():
    checkpoint.write_file("output/report.txt", b"first")
    checkpoint.write_file("output/report.txt", b"second")
    assert Path("output/report.txt").read_bytes() == b"second"
    assert os.listdir("output") == ["report.txt"]


def test_state_survives_the_way_through_a_file():
    state = TinyNet().state_dict()
    checkpoint.save_state(state, "output/model.pth")
    loaded = checkpoint.load_state("output/model.pth")
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[key].cpu(), state[key]) for key in state)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("trap",))


def test_load_state_runs_no_code_from_the_file():
    torch.save({"weight": Evil()}, "evil.pth")
    with pytest.raises(UserError, match="evil.pth"):
        checkpoint.load_state("evil.pth")
    assert not os.path.exists("trap")


# what differs on the second of two machines: settings, what happens to its images, what is said
DIFFERENCES = [
    ({"LR": 0.01}, None, "LR is 0.0001 on {0} and 0.01 on {1}; they must match"),
    ({"SEED": 7}, None, "SEED is 42 on {0} and 7 on {1}"),
    ({"EPOCHS": 3}, None, "EPOCHS is 1 on {0} and 3 on {1}"),
    ({"IMAGE_SIZE": 96}, None, "IMAGE_SIZE is 64 on {0} and 96 on {1}"),
    ({"LOCAL_BATCH_SIZE": 6}, None, "LOCAL_BATCH_SIZE is 5 on {0} and 6 on {1}"),
    ({"PRETRAINED": True}, None, "PRETRAINED is False on {0} and True on {1}"),
    (
        {"CLASSES": ["Bread", "Egg", "Pizza"]},
        "rename",
        "CLASSES is ['Bread', 'Egg', 'Soup'] on {0}",
    ),
    ({}, "rename", "the training set is 15 images (*) on {0} and 15 images (*) on {1}"),
    ({}, "remove", "the validation set is 9 images (*) on {0} and 8 images (*) on {1}"),
    ({}, "replace", "the test set is 9 images (*) on {0} and 9 images (*) on {1}"),
    ({}, "lose", "the training set is 15 images (*) on {0} and 0 images (*) on {1}"),
]


def change_images(change):
    """Change the images of the second machine."""
    root = Path("second/dataset")
    if change == "rename":
        for path in root.glob("*/Soup"):
            path.rename(path.with_name("Pizza"))
    elif change == "remove":
        (root / "validation/Egg/0.jpg").unlink()
    elif change == "replace":
        draw_image(root / "evaluation/Egg/0.jpg", 7, seed=9)
    elif change == "lose":
        shutil.rmtree(root)


@pytest.mark.parametrize(("settings", "change", "says"), DIFFERENCES)
def test_machines_that_disagree_end_with_the_same_line(settings, change, says):
    for name in ("first", "second"):
        draw_class_folders(Path(name, "dataset"))
    change_images(change)
    same = {"IMAGE_SIZE": 64, "EPOCHS": 1, "LOCAL_BATCH_SIZE": 5, "PRETRAINED": False}
    start = time.monotonic()
    (first, second) = torchrun_envs(2, machines=2)
    processes = [
        start_forked("train_distributed.py", cwd=name, env=env, settings=same | changes)
        for name, env, changes in (("first", first, {}), ("second", second, settings))
    ]
    runs = [read_forked(process) for process in processes]
    assert time.monotonic() - start < 30
    (host, lines) = (platform.node(), [run.stderr.strip() for run in runs])
    pattern = re.escape(says.format(f"{host} (rank 0)", f"{host} (rank 1)")).replace(
        r"\*", r"\w{8}"
    )
    for run in runs:
        assert run.returncode == 1
        assert re.match(rf"\[ERROR\] .*{pattern}", run.stderr)
        assert run.stderr.count("\n") == 1
    assert lines[0] == lines[1]
    assert not os.path.exists("first/output/checkpoint.pth")


def start_pair(**settings):
    """Start two processes that train one model in this directory, as torchrun does on two
    machines."""
    draw_class_folders(Path("dataset"), counts=(8, 4, 4))
    same = {"IMAGE_SIZE": 64, "EPOCHS": 2, "LOCAL_BATCH_SIZE": 4, "PRETRAINED": False}
    return [
        start_forked("train_distributed.py", env=env, settings=same | settings)
        for env in torchrun_envs(2, machines=2)
    ]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_whose_partner_is_lost_says_so_in_one_line(lost):
    processes = start_pair(EPOCHS=10000, NUM_WORKERS=1)
    wait_until(processes[0], lambda: os.path.exists(config.CHECKPOINT_PATH))
    processes[lost].kill()
    start = time.monotonic()
    run = read_forked(processes[1 - lost])
    assert time.monotonic() - start < 10
    assert run.returncode == 1
    assert re.fullmatch(
        r"\[ERROR\] lost the connection to another process, whose own message names the cause; "
        r"--resume continues.*\n",
        run.stderr,
    )
    assert read_forked(processes[lost]).returncode == -signal.SIGKILL


def test_a_diverged_loss_ends_all_processes_together():
    for process in start_pair(STD=[1e-39] * 3):
        run = read_forked(process)
        assert run.returncode == 1
        assert run.stderr == (
            "[ERROR] training diverged: the loss is not a number; restart with a lower --lr\n"
        )
    assert not os.path.exists(config.CHECKPOINT_PATH)


def test_the_time_taken_is_right_when_the_clock_is_set_back(tinyRun, capsys, monkeypatch):
    hours = iter(range(100, 0, -1))
    monkeypatch.setattr(train_distributed.time, "time", lambda: next(hours) * 3600)
    tinyRun("--epochs", "1")
    (taken,) = re.findall(r"time taken to train the model: (.+)s\n", capsys.readouterr().out)
    assert 0 < float(taken) < 60
