"""The three scripts, and one as a reader of the tutorial would write it, as processes."""

import os
import re
import shutil

import pytest
from helpers import PROJECT, call, draw_food11, load, run_python
from torchvision.models import densenet121

import distributed_inference
from pyimagesearch import config
from pyimagesearch.food_classifier import FoodClassifier

FLAGS = "--no-pretrained --image-size 64 --epochs 1 --local-batch-size 9 --num-workers 2"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a folder in which all three ran, a copy in which the tutorial's did, and the runs."""
    own = tmp_path_factory.mktemp("own")
    tutorial = tmp_path_factory.mktemp("tutorial")
    draw_food11(own / "Food-11")
    # a notebook's backend, and no screen
    env = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "DISPLAY": ""}
    scripts = ("prepare_dataset.py", f"train_distributed.py {FLAGS}", "distributed_inference.py")

    def run_script(name, *flags, cwd):
        return run_python("-W", "error", PROJECT / name, *flags, cwd=cwd, env=env)

    runs = [run_script(*script.split(), cwd=own) for script in scripts]
    shutil.copytree(own, tutorial, dirs_exist_ok=True)
    runs.append(run_script("tests/tutorial_driver.py", cwd=tutorial))
    for run in runs:
        assert run.returncode == 0, run.stderr
    return own, tutorial, runs


def test_a_user_goes_from_photographs_to_predictions_without_a_warning(finished):
    (own, _, (prepare, train, inference, _)) = finished
    # a log file is kept free of progress bars
    assert [run.stderr for run in (prepare, train, inference)] == [""] * 3
    # as no flag and no class name is missing from what the scripts themselves wrote
    assert "overridden by flags" not in prepare.stdout + inference.stdout
    assert "CLASSES in config.py" not in inference.stdout
    assert "total images copied to dataset/training: 33" in prepare.stdout.replace(os.sep, "/")
    report = (own / config.REPORT_PATH).read_text()
    assert report in train.stdout
    # the slash of Noodles/Pasta makes nested folders
    assert re.search(r"^ *Noodles .* 2$", report, re.M)
    assert re.search(r"accuracy +[01]\.\d\d +22\n", report)
    assert re.search(r"correct predictions: [0-4] of 4", inference.stdout)
    assert sorted(os.listdir(own)) == ["Food-11", "dataset", "output"]
    assert (own / config.RESULTS_PATH).exists()


def test_a_script_after_the_tutorial_runs_and_its_weights_are_read(finished, monkeypatch, capsys):
    (own, tutorial, (*_, run)) = finished
    assert run.stdout.startswith("33 22 ['Bread', 'Dairy_product', ")
    assert run.stderr == ""
    for folder in (own, tutorial):
        model = FoodClassifier(densenet121(weights=None), 11)
        model.load_state_dict(load(folder / config.MODEL_PATH), strict=True)
    monkeypatch.chdir(tutorial)
    call(distributed_inference.main, os.path.join("dataset", "evaluation", "Egg"))
    out = capsys.readouterr().out
    assert "no class names: they are taken from CLASSES in config.py" in out
    assert len(re.findall(r"\.jpg: (?:\w+ [01]\.\d\d(?:, |\n)){3}", out)) == 2
