import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import PROJECT, TinyNet, draw_class_folders, install_project, run_script

import train_distributed
from pyimagesearch import checkpoint, config, devices, food_classifier
from pyimagesearch.cli import UserError

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
    run = run_script("train_distributed.py", *FLAGS, cwd=folder)
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
        run = run_script(
            PROJECT / "tests" / "killed_training.py",
            *FLAGS,
            "--resume",
            env={"KILL_AT": moment.strip()},
        )
        assert run.returncode == -signal.SIGKILL, run.stderr
        found = os.path.exists(config.CHECKPOINT_PATH)
        assert (checkpoint.load_state(config.CHECKPOINT_PATH)["epoch"] if found else 0) == epoch
        assert not os.path.exists(config.REPORT_PATH)
    run = run_script("train_distributed.py", *FLAGS, "--resume")
    assert run.returncode == 0, run.stderr
    assert "[INFO] resuming after epoch 4/4...\n" in run.stdout
    assert_same_outcome(tmp_path, uninterrupted)


def test_more_epochs_train_on_as_if_they_had_been_asked_for_at_once(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted / "dataset", tmp_path / "dataset")
    fewer = [
        "2" if flag == "4" and FLAGS[i - 1] == "--epochs" else flag for i, flag in enumerate(FLAGS)
    ]
    for flags in (fewer, [*FLAGS, "--resume"]):
        run = run_script("train_distributed.py", *flags)
        assert run.returncode == 0, run.stderr
    assert (
        "resuming after epoch 2/4...\n[INFO] training the network...\n[INFO] EPOCH: 3/4\n"
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


def start_endless_training():
    """Start a training in a session of its own; return its Popen after the first epoch."""
    process = subprocess.Popen(
        [sys.executable, install_project() / "train_distributed.py", *FLAGS, "--epochs", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if "EPOCH: 1/" in line:
            break
    return process


@pytest.mark.parametrize(
    ("number", "times", "status"),
    [(signal.SIGINT, 1, 130), (signal.SIGTERM, 1, 143), (signal.SIGINT, 2, 130)],
)
def test_a_signal_says_how_to_go_on_and_leaves_no_worker(uninterrupted, number, times, status):
    shutil.copytree(uninterrupted / "dataset", "dataset")
    process = start_endless_training()
    for _ in range(times):
        # as a terminal does, to the script and its workers; SIGTERM comes to the script alone
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        time.sleep(0.05)
    (_, stderr) = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("[INFO] interrupted: ")
    assert "--resume" in lines[0]
    assert_group_is_gone(process)
    assert checkpoint.load_state(config.CHECKPOINT_PATH)["epoch"] >= 1


@pytest.mark.skipif(sys.platform == "win32", reason="no jobs in the background of a shell")
def test_ctrl_c_does_not_end_a_run_that_ignores_it(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted / "dataset", tmp_path / "dataset")
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    code = ignore + "import sys, runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    with subprocess.Popen(
        [sys.executable, "-c", code, install_project() / "train_distributed.py", *FLAGS],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(install_project())},
        text=True,
    ) as process:
        for line in process.stdout:
            # in the course of training, not before
            if "training the network" in line or "EPOCH" in line:
                for _ in range(5):
                    process.send_signal(signal.SIGINT)
                    time.sleep(0.1)
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of a file")
def test_a_full_disk_keeps_the_checkpoint_before(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in Path("output").iterdir()}
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)); "
    code = limit + "import runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; " + code,
            str(install_project() / "train_distributed.py"),
        ]
        + [*FLAGS, "--resume", "--epochs", "6"],
        env={**os.environ, "PYTHONPATH": str(install_project())},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "[ERROR] output/checkpoint.pth: cannot be written (File too large)" in run.stderr
    assert "Traceback" not in run.stderr
    assert {path: path.read_bytes() for path in Path("output").iterdir()} == before


@pytest.fixture
def tinyRun(monkeypatch):
    """Let train(*flags) run train_distributed.py here, with a small network; a second each."""
    draw_class_folders(Path("dataset"))
    monkeypatch.setattr(food_classifier, "densenet121", lambda weights: TinyNet())

    def train(*flags):
        argv = ["train_distributed.py", *FLAGS, "--num-workers", "0", *flags]
        monkeypatch.setattr("sys.argv", argv)
        train_distributed.main()

    return train


def test_resume_without_a_checkpoint_starts_and_says_so(tinyRun, capsys):
    tinyRun("--resume", "--epochs", "1")
    assert f"[INFO] no checkpoint at {config.CHECKPOINT_PATH}" in capsys.readouterr().out
    assert checkpoint.load_state(config.CHECKPOINT_PATH)["epoch"] == 1


def test_an_unfinished_checkpoint_is_set_aside_by_a_new_training(tinyRun, capsys, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        # the training dies in epoch 2
        patch.setattr(train_distributed, "evaluate", lambda *args: 1 / 0 if done else (1, 1, []))
        save = checkpoint.save_checkpoint
        patch.setattr(checkpoint, "save_checkpoint", lambda *args: (save(*args), done.append(1)))
        done = []
        tinyRun()
    unfinished = Path(config.CHECKPOINT_PATH).read_bytes()
    tinyRun()
    previousPath = Path("output/checkpoint.previous.pth")
    assert f"is kept as {previousPath}" in capsys.readouterr().out
    assert previousPath.read_bytes() == unfinished
    # a finished one is not in need of that
    tinyRun("--epochs", "1")
    assert "is kept" not in capsys.readouterr().out
    assert previousPath.read_bytes() == unfinished


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
    assert {"model", "opt", "lrScheduler", "scaler", "epoch", "H", "randomState"} < set(state)
    assert state["settings"]["CLASSES"] == ["Bread", "Egg", "Soup"]
    assert state["settings"]["IMAGE_SIZE"] == 64
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
    with pytest.raises(train_distributed.UserError, match="the loss of epoch 2 is not a number"):
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


def test_other_devices_may_go_on_with_the_same_batch_and_rate_in_all(monkeypatch):
    settings = []
    for count, batchSize, rate in ((3, 128, 0.0001), (1, 384, 0.0003), (6, 64, 0.00005)):
        monkeypatch.setattr(devices, "count_devices", lambda count=count: count)
        (config.LOCAL_BATCH_SIZE, config.LR) = (batchSize, rate)
        settings.append(checkpoint.get_settings(["Bread", "Egg"]))
    assert settings[0] == settings[1] == settings[2]
    config.LR = 0.00006
    assert checkpoint.get_settings(["Bread", "Egg"]) != settings[0]


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
