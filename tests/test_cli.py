import os
import re
import shutil
import sys
from pathlib import Path

import distributed_inference
import prepare_dataset
import train_distributed
from pyimagesearch import checkpoint, cli, config, food_classifier
from pyimagesearch.cli import UserError, run
from pyimagesearch.food_classifier import FoodClassifier

import pytest
import torch
from conftest import (
    ORIGINAL_CONFIG,
    TinyNet,
    draw_class_folders,
    draw_food11,
    draw_image,
    run_forked,
)


def parse(monkeypatch, settings, *flags):
    monkeypatch.setattr(sys, "argv", ["script.py", *flags])
    return cli.parse_args(cli.make_parser("A script.", settings, "python script.py --epochs 5"))


def test_flags_override_config_for_this_run(monkeypatch):
    before = config.LOCAL_BATCH_SIZE
    flags = "--image-size 64 --epochs 3 --lr 1e-3 --num-workers 0 --seed 7 --no-pretrained"
    parse(monkeypatch, list(cli.SETTINGS), *flags.split())
    assert (config.IMAGE_SIZE, config.EPOCHS, config.LR, config.SEED) == (64, 3, 0.001, 7)
    assert config.NUM_WORKERS == 0
    assert config.PRETRAINED is False
    assert config.LOCAL_BATCH_SIZE == before


def test_settings_that_differ_from_config_are_told(monkeypatch, capsys):
    parse(monkeypatch, list(cli.SETTINGS), "--epochs", "3", "--lr", "0.0001", "--no-pretrained")
    assert capsys.readouterr().out == (
        "[INFO] overridden by flags: EPOCHS = 3, PRETRAINED = False...\n"
    )


def test_config_holds_where_no_flag_is_given(monkeypatch):
    config.EPOCHS = 5
    parse(monkeypatch, ["EPOCHS"])
    assert config.EPOCHS == 5


def test_help_gives_each_flag_with_its_default(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(monkeypatch, list(cli.SETTINGS), "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "A script." in text
    for name, (*_, meaning) in cli.SETTINGS.items():
        assert f"--{name.lower().replace('_', '-')}" in text
        assert f"{meaning} (default: {getattr(config, name)})" in text
    assert "--no-pretrained" in text
    assert "example: python script.py --epochs 5" in text


@pytest.mark.parametrize(
    "flags",
    [
        ["--epochs", "0"],
        ["--epochs", "2.5"],
        ["--lr", "0"],
        ["--lr", "nan"],
        ["--lr", "fast"],
        ["--image-size", "63"],
        ["--bogus"],
    ],
)
def test_a_wrong_flag_is_named_in_one_line_with_status_2(monkeypatch, flags):
    with pytest.raises(UserError, match=rf"^.*{flags[0]}.*\Z") as caught:
        parse(monkeypatch, list(cli.SETTINGS), *flags)
    assert caught.value.status == 2


@pytest.mark.parametrize("module", [prepare_dataset, train_distributed, distributed_inference])
def test_every_script_has_help_with_an_example(monkeypatch, capsys, module):
    name = f"{module.__name__}.py"
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    text = capsys.readouterr().out
    assert f"usage: {name} " in text
    assert "--seed" in text
    assert f"example: python {name} " in text


def test_help_is_there_before_anything_else():
    run = run_forked("train_distributed.py", "--help")
    assert (run.returncode, run.stderr) == (0, "")
    # of config.py as it comes, whatever a user has written there since
    for name in ("IMAGE_SIZE", "EPOCHS", "SEED"):
        assert f"(default: {ORIGINAL_CONFIG[name]})" in " ".join(run.stdout.split())


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("no data: prepare it"), 1, "[ERROR] no data: prepare it"),
        (UserError("no such flag", status=2), 2, "[ERROR] no such flag"),
        (UserError("Caught\nTraceback\nerrors.UserError: a.jpg\n"), 1, "[ERROR] a.jpg"),
        (OSError(28, "No space left", "a.pth"), 1, "[ERROR] a.pth: No space left; "),
        (OSError("disk on fire"), 1, "[ERROR] disk on fire; "),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "[ERROR] out of memory; "),
        (RuntimeError("worker is killed by signal: Killed. "), 1, "[ERROR] out of memory; "),
        (MemoryError(), 1, "[ERROR] out of memory; "),
        (
            OSError(24, "Too many open files", "a.jpg"),
            1,
            "[ERROR] too many open files; raise the limit (ulimit -n 4096), or use a smaller --num",
        ),
        (RuntimeError("received 0 items of ancdata"), 1, "[ERROR] too many open files; raise"),
        (RuntimeError("gloo/transport/tcp/pair.cc:561] Connection closed"), 1, "[ERROR] lost the "),
        (RuntimeError("alloc_cpu.cpp: can't allocate memory: 12"), 1, "[ERROR] out of memory; "),
        (RuntimeError("Caught\nallocate shared memory(shm)"), 1, "[ERROR] /dev/shm is too small"),
        (RuntimeError("Bus error. out of shared memory. "), 1, "[ERROR] /dev/shm is too small"),
    ],
)
def test_what_the_user_can_put_right_ends_in_one_line(capfd, error, status, line):
    with pytest.raises(SystemExit) as stop:
        run(lambda: fail(error))
    assert stop.value.code == status
    stderr = capfd.readouterr().err.strip("\n")
    assert stderr.startswith(line)
    assert "\n" not in stderr


@pytest.mark.parametrize("defect", [ZeroDivisionError, RuntimeError])
def test_a_defect_of_the_program_keeps_its_traceback(capfd, defect):
    with pytest.raises(SystemExit, match="1"):
        run(lambda: fail(defect("a defect")))
    stderr = capfd.readouterr().err
    assert stderr.startswith("Traceback")
    assert stderr.endswith(f"{defect.__name__}: a defect\n")


def test_config_is_taken_where_its_meaning_is_plain(monkeypatch):
    monkeypatch.setenv("HOME", os.path.abspath("home"))
    config.CLASSES = [" Bread", "Noodles / Pasta ", "Egg"]
    (config.DATA_PATH, config.TRAIN) = ("~/photos", os.path.join("~", "dataset", "training"))
    cli.check_config()
    assert config.CLASSES == ["Bread", "Noodles/Pasta", "Egg"]
    assert config.DATA_PATH == os.path.join(os.path.abspath("home"), "photos")
    assert config.TRAIN == os.path.join(os.path.abspath("home"), "dataset", "training")


TRAIN = "--image-size 64 --epochs 1 --num-workers 0 --local-batch-size 4 --no-pretrained"
RESUME = TRAIN + " --resume"


class Evil:
    """Makes a folder where it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("trap",))


def cut(path):
    """Lose the second half of a file, as a broken download does."""
    path = Path(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write(path, content):
    Path(path).write_text(content)


def replace_folder(path):
    """Put a file where a folder is expected."""
    shutil.rmtree(path, ignore_errors=True)
    write(path, "a file")


def damage_imagenet_weights():
    folder = Path(os.environ["TORCH_HOME"], "hub", "checkpoints")
    folder.mkdir(parents=True)
    write(folder / "densenet121-a639ec97.pth", "half a download")


def save_odd_weights():
    state = FoodClassifier(TinyNet(), 3).state_dict()
    state._metadata[""]["imageSize"] = "224px"
    torch.save(state, config.MODEL_PATH)


def finish_training(**settings):
    """Leave the checkpoint of a training that had other settings."""
    for name, value in settings.items():
        setattr(config, name, value)
    train("--image-size 64 --num-workers 0 --local-batch-size 4 --epochs 1 --no-pretrained")


def train(flags):
    call("train_distributed.py", flags)


def call(script, flags):
    """Call a script's main as its last lines do; return the exit status."""
    module = {
        "prepare_dataset.py": prepare_dataset,
        "train_distributed.py": train_distributed,
        "distributed_inference.py": distributed_inference,
    }[script]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [script, *flags.split()])
        try:
            run(module.main)
        except SystemExit as stop:
            return stop.code
    return 0


PREPARE, TRAINING, INFERENCE = (
    "prepare_dataset.py",
    "train_distributed.py",
    "distributed_inference.py",
)
NAN = torch.full((3, 8), float("nan"))

# what was given, the script and its flags, how it comes about, what the line must say, the status
BAD_INPUTS = [
    ("no data set", PREPARE, "", lambda: shutil.rmtree("Food-11"), "Food-11: no such folder", 1),
    ("data set is a file", PREPARE, "", lambda: replace_folder("Food-11"), "Food-11: no such", 1),
    (
        "no validation split",
        PREPARE,
        "",
        lambda: shutil.rmtree("Food-11/validation"),
        "Food-11/validation: no such folder",
        1,
    ),
    (
        "empty test split",
        PREPARE,
        "",
        lambda: [path.unlink() for path in Path("Food-11/evaluation").iterdir()],
        "Food-11/evaluation: no image of class 0, Bread",
        1,
    ),
    (
        "a class without images",
        PREPARE,
        "",
        lambda: [path.unlink() for path in Path("Food-11/validation").glob("1_*")],
        "Food-11/validation: no image of class 1, Egg",
        1,
    ),
    ("a truncated image", PREPARE, "", lambda: cut("Food-11/training/0_0.jpg"), "0_0.jpg: ", 1),
    ("an empty image", PREPARE, "", lambda: write("Food-11/training/0_0.jpg", ""), "0_0.jpg: ", 1),
    ("text as image", PREPARE, "", lambda: write("Food-11/training/0_0.jpg", "?"), "0_0.jpg: ", 1),
    (
        "a class index out of range",
        PREPARE,
        "",
        lambda: draw_image(Path("Food-11/training/3_0.jpg"), 0),
        "Food-11/training/3_0.jpg: the name does not begin with a class index from 0 to 2",
        1,
    ),
    (
        "a name without class index",
        PREPARE,
        "",
        lambda: draw_image(Path("Food-11/training/lunch.jpg"), 0),
        "Food-11/training/lunch.jpg: the name",
        1,
    ),
    (
        "a folder of no class",
        PREPARE,
        "",
        lambda: draw_image(Path("Food-11/training/Pizza/0.jpg"), 0),
        "Food-11/training/Pizza/0.jpg: the folder is not in CLASSES of config.py",
        1,
    ),
    (
        "labels that share a folder",
        PREPARE,
        "",
        lambda: setattr(config, "CLASSES", ["Bread", "Rice/white", "Rice/brown"]),
        "CLASSES in config.py has 'Rice/white' and 'Rice/brown', which share a class folder",
        1,
    ),
    (
        "two images of one name",
        PREPARE,
        "",
        lambda: draw_image(Path("Food-11/training/Bread/0_0.jpg"), 0),
        "Food-11/training/Bread/0_0.jpg: same name and class as another image (Food-11/trainin",
        1,
    ),
    (
        "leftovers of other classes",
        PREPARE,
        "",
        lambda: draw_image(Path("dataset/training/Pizza/0_7.jpg"), 0),
        "dataset/training: holds images of an earlier data set or split (1, such as dataset/trai",
        1,
    ),
    ("dataset is a file", PREPARE, "", lambda: replace_folder("dataset"), "dataset", 1),
    (
        "a sample for other classes",
        PREPARE,
        "--sample",
        lambda: shutil.rmtree("Food-11"),
        "the sample has the classes of Food-11",
        1,
    ),
    ("not prepared", TRAINING, TRAIN, lambda: shutil.rmtree("dataset"), "prepare_dataset.py", 1),
    (
        "a class folder without images",
        TRAINING,
        TRAIN,
        lambda: os.mkdir("dataset/training/Pizza"),
        "dataset/training: Found no valid file for the classes Pizza",
        1,
    ),
    (
        "a split without class folders",
        TRAINING,
        TRAIN,
        lambda: [shutil.rmtree(path) for path in Path("dataset/validation").iterdir()],
        "dataset/validation: Couldn't find any class folder",
        1,
    ),
    (
        "splits of other classes",
        TRAINING,
        TRAIN,
        lambda: shutil.rmtree("dataset/evaluation/Soup"),
        "dataset/evaluation: classes differ from CLASSES in config.py (different: Soup); run ",
        1,
    ),
    (
        "an image damaged after prepare",
        TRAINING,
        TRAIN,
        lambda: cut("dataset/training/Egg/0.jpg"),
        "dataset/training/Egg/0.jpg: cannot be read as an image",
        1,
    ),
    (
        "the same, read by a worker",
        TRAINING,
        TRAIN + " --num-workers 2",
        lambda: cut("dataset/training/Egg/0.jpg"),
        "dataset/training/Egg/0.jpg: cannot be read as an image",
        1,
    ),
    (
        "a truncated checkpoint",
        TRAINING,
        RESUME,
        lambda: (finish_training(), cut(config.CHECKPOINT_PATH)),
        "output/checkpoint.pth: corrupt",
        1,
    ),
    (
        "weights as checkpoint",
        TRAINING,
        RESUME,
        lambda: shutil.copy(config.MODEL_PATH, config.CHECKPOINT_PATH),
        "output/checkpoint.pth: not a checkpoint",
        1,
    ),
    (
        "a checkpoint that would run code",
        TRAINING,
        RESUME,
        lambda: torch.save({"settings": Evil()}, config.CHECKPOINT_PATH),
        "output/checkpoint.pth: corrupt, or not",
        1,
    ),
    (
        "a checkpoint of another image size",
        TRAINING,
        RESUME + " --image-size 128",
        finish_training,
        "IMAGE_SIZE is 64 in output/checkpoint.pth and 128 in this run; they must match, or start",
        1,
    ),
    (
        "a checkpoint of other classes",
        TRAINING,
        RESUME,
        lambda: (
            finish_training(),
            [path.rename(path.with_name("Pizza")) for path in Path("dataset").glob("*/Soup")],
            setattr(config, "CLASSES", ["Bread", "Egg", "Pizza"]),
        ),
        "CLASSES is ['Bread', 'Egg', 'Soup'] in output/checkpoint.pth and ['Bread', 'Egg', 'Piz",
        1,
    ),
    (
        "ImageNet weights out of reach",
        TRAINING,
        TRAIN + " --pretrained",
        lambda: None,
        "--no-pretrained",
        1,
    ),
    (
        "damaged ImageNet weights",
        TRAINING,
        TRAIN + " --pretrained",
        damage_imagenet_weights,
        os.path.join("hub", "checkpoints"),
        1,
    ),
    (
        "output is a file",
        TRAINING,
        TRAIN,
        lambda: replace_folder("output"),
        "output: cannot write to this folder (",
        1,
    ),
    (
        "a loss that is not a number",
        TRAINING,
        TRAIN,
        lambda: setattr(config, "STD", [1e-39] * 3),
        "the loss is not a number",
        1,
    ),
    ("no epochs", TRAINING, "--epochs 0", lambda: None, "--epochs: must be a whole number", 2),
    ("half an epoch", TRAINING, "--epochs 0.5", lambda: None, "--epochs: must be a whole", 2),
    ("no learning rate", TRAINING, "--lr 0", lambda: None, "--lr: must be a number from", 2),
    ("a rate that is no number", TRAINING, "--lr nan", lambda: None, "--lr: must be a number", 2),
    ("too small images", TRAINING, "--image-size 16", lambda: None, "--image-size: must be", 2),
    ("a negative batch", TRAINING, "--local-batch-size -4", lambda: None, "--local-batch-size", 2),
    ("a flag that is none", TRAINING, "--batch 3", lambda: None, "--batch", 2),
    ("EPOCHS as text", TRAINING, "", lambda: setattr(config, "EPOCHS", "ten"), "EPOCHS in co", 1),
    ("LR below 0", TRAINING, "", lambda: setattr(config, "LR", -0.1), "LR in config.py must", 1),
    ("IMAGE_SIZE 8", INFERENCE, "", lambda: setattr(config, "IMAGE_SIZE", 8), "IMAGE_SIZE in", 1),
    ("PRETRAINED 1", TRAINING, "", lambda: setattr(config, "PRETRAINED", 1), "PRETRAINED in", 1),
    ("CLASSES as text", PREPARE, "", lambda: setattr(config, "CLASSES", "Egg"), "CLASSES in", 1),
    ("a label that leads elsewhere", PREPARE, "", lambda: config.CLASSES.append("../x"), "CLAS", 1),
    ("DEVICE as text", TRAINING, "", lambda: setattr(config, "DEVICE", "gpu"), "DEVICE in", 1),
    (
        "a GPU that is not there",
        TRAINING,
        "",
        lambda: setattr(config, "DEVICE", torch.device("cuda:99")),
        "DEVICE in config.py must be a device that this machine has",
        1,
    ),
    ("no path", TRAINING, "", lambda: setattr(config, "MODEL_PATH", None), "MODEL_PATH in c", 1),
    ("two channels", TRAINING, "", lambda: setattr(config, "MEAN", [0.5, 0.5]), "MEAN in", 1),
    ("a deviation of 0", TRAINING, "", lambda: setattr(config, "STD", [0.2, 0.2, 0]), "STD in", 1),
    ("a mean up to 255", TRAINING, "", lambda: setattr(config, "MEAN", [123.7] * 3), "MEAN in", 1),
    (
        "inference before training",
        INFERENCE,
        "",
        lambda: os.remove(config.MODEL_PATH),
        "output/food_classifier.pth: No such file or directory; train_distributed.py writes",
        1,
    ),
    ("truncated weights", INFERENCE, "", lambda: cut(config.MODEL_PATH), "corrupt", 1),
    ("text as weights", INFERENCE, "", lambda: write(config.MODEL_PATH, "?"), "corrupt, or not", 1),
    (
        "weights that would run code",
        INFERENCE,
        "",
        lambda: torch.save({"classifier.bias": Evil()}, config.MODEL_PATH),
        "no code in it was executed",
        1,
    ),
    (
        "weights for other classes",
        INFERENCE,
        "",
        lambda: checkpoint.save_state(FoodClassifier(TinyNet(), 4).state_dict(), config.MODEL_PATH),
        "were trained on 4 classes without their names, and CLASSES in config.py has 3 classes: B",
        1,
    ),
    (
        "a list as weights",
        INFERENCE,
        "",
        lambda: torch.save([1, 2], config.MODEL_PATH),
        "output/food_classifier.pth: not the weights",
        1,
    ),
    (
        "weights with other metadata",
        INFERENCE,
        "",
        save_odd_weights,
        "not the weights of a FoodClassifier over DenseNet121 (invalid literal for int",
        1,
    ),
    (
        "a tensor as weights",
        INFERENCE,
        "",
        lambda: torch.save(torch.tensor(1.0), config.MODEL_PATH),
        "output/food_classifier.pth: not the weights",
        1,
    ),
    (
        "no test images",
        INFERENCE,
        "",
        lambda: shutil.rmtree("dataset"),
        "dataset/evaluation: No",
        1,
    ),
    (
        "a folder without images to classify",
        INFERENCE,
        "empty",
        lambda: os.mkdir("empty"),
        "empty: no image in this folder",
        1,
    ),
    ("text to classify", INFERENCE, "a.txt", lambda: write("a.txt", "?"), "a.txt: cannot be", 1),
    ("a file that is not there", INFERENCE, "a.jpg", lambda: None, "a.jpg: no such file", 1),
    ("output is a file, again", INFERENCE, "", lambda: replace_folder("output"), "output", 1),
]


def read_tree(*roots):
    return {
        # a new training moves an earlier one into a folder of its own
        re.sub(r"^output/run-[-0-9]+/", "output/", path.as_posix()): path.read_bytes()
        for root in roots
        for path in [Path(root), *Path(root).rglob("*")]
        # prepare writes there what is wrong with images
        if path.is_file() and path.name not in (".lock", "bad_images.txt")
    }


@pytest.fixture
def project(monkeypatch, tmp_path):
    """A working directory after a good run of all scripts, with a network that is quick."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    # no network, as on a machine without one
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    densenet121 = food_classifier.densenet121
    monkeypatch.setattr(
        food_classifier,
        "densenet121",
        lambda weights: densenet121(weights=weights) if weights else TinyNet(),
    )
    config.CLASSES = ["Bread", "Egg", "Soup"]
    draw_food11(Path("Food-11"), numClasses=3)
    draw_class_folders(Path("dataset"))
    checkpoint.save_state(FoodClassifier(TinyNet(), 3).state_dict(), config.MODEL_PATH)
    for path in (config.REPORT_PATH, config.PLOT_PATH, config.CONFUSION_PATH, config.RESULTS_PATH):
        write(path, "of an earlier run")


@pytest.mark.parametrize(
    ("script", "flags", "spoil", "says", "status"),
    [pytest.param(*row[1:], id=row[0]) for row in BAD_INPUTS],
)
def test_ends_in_one_line_and_loses_nothing(project, capsys, script, flags, spoil, says, status):
    if script == PREPARE:
        shutil.rmtree("dataset")
    spoil()
    capsys.readouterr()
    before = read_tree("Food-11", "dataset", "output")
    assert call(script, flags) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("[ERROR] ")
    assert says in lines[0].replace(os.sep, "/")
    assert read_tree("Food-11", "dataset", "output") == before
    assert not os.path.exists("trap")
