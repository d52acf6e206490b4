import sys

import pytest
from conftest import run_script

from pyimagesearch import cli, config
from pyimagesearch.errors import UserError


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
        "[INFO] other than in config.py: EPOCHS = 3, PRETRAINED = False...\n"
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
        ["--image-size", "31"],
        ["--bogus"],
    ],
)
def test_a_wrong_flag_is_named_in_one_line_with_status_2(monkeypatch, flags):
    with pytest.raises(UserError, match=rf"^.*{flags[0]}.*\Z") as caught:
        parse(monkeypatch, list(cli.SETTINGS), *flags)
    assert caught.value.status == 2


@pytest.mark.parametrize(
    ("flags", "right"),
    [
        (["--epcohs", "3"], "--epochs"),
        (["--batch-size=3"], "--local-batch-size"),
        (["-lr", "1"], "--lr"),
        (["--no-pretraind"], "--no-pretrained"),
    ],
)
def test_a_misspelt_flag_is_answered_with_the_right_one(monkeypatch, flags, right):
    settings = ["EPOCHS", "LR", "PRETRAINED", "LOCAL_BATCH_SIZE"]
    with pytest.raises(UserError, match=rf"did you mean {right}\?"):
        parse(monkeypatch, settings, *flags)


@pytest.mark.parametrize(
    "name", ["prepare_dataset.py", "train_distributed.py", "distributed_inference.py"]
)
def test_every_script_has_help_with_an_example(name):
    run = run_script(name, "--help")
    assert (run.returncode, run.stderr) == (0, "")
    assert "--seed" in run.stdout
    assert f"example: python {name} " in run.stdout
