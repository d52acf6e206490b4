import os
from pathlib import Path

import pytest
import torch
from conftest import TinyNet

from pyimagesearch import files
from pyimagesearch.errors import UserError


def test_write_file_makes_the_folder_and_leaves_nothing_beside_the_file():
    files.write_file("output/report.txt", b"first")
    files.write_file("output/report.txt", b"second")
    assert Path("output/report.txt").read_bytes() == b"second"
    assert os.listdir("output") == ["report.txt"]


def test_state_survives_the_way_through_a_file():
    state = TinyNet().state_dict()
    files.save_state(state, "output/model.pth")
    loaded = files.load_state("output/model.pth")
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[key].cpu(), state[key]) for key in state)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("trap",))


def test_load_state_runs_no_code_from_the_file():
    torch.save({"weight": Evil()}, "evil.pth")
    with pytest.raises(UserError, match="evil.pth"):
        files.load_state("evil.pth")
    assert not os.path.exists("trap")
