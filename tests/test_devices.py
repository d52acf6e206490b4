import pytest
import torch
from conftest import TinyNet
from torch import nn

from pyimagesearch import config, devices


@pytest.mark.parametrize(
    ("device", "found", "expected"),
    [("cpu", 4, 0), ("mps", 0, 1), ("cuda", 1, 1), ("cuda", 4, 4), ("cuda:1", 4, 1)],
)
def test_counts_the_gpus_that_config_names(monkeypatch, device, found, expected):
    config.DEVICE = torch.device(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert devices.count_gpus() == expected
    assert devices.count_devices() == max(expected, 1)


def test_one_device_runs_the_plain_model(monkeypatch):
    monkeypatch.setattr(devices, "count_gpus", lambda: 1)
    model = TinyNet()
    assert devices.wrap_model(model) is model
    assert devices.unwrap_model(model) is model


def test_several_gpus_run_under_data_parallel(monkeypatch):
    monkeypatch.setattr(devices, "count_gpus", lambda: 2)
    model = TinyNet().eval()
    x = torch.randn(3, 3, 8, 8)
    expected = model(x)
    wrapped = devices.wrap_model(model)
    assert isinstance(wrapped, nn.DataParallel)
    assert devices.unwrap_model(wrapped) is model
    assert torch.allclose(wrapped(x.to(config.DEVICE)).cpu(), expected, atol=1e-4)


def test_precision_is_what_the_device_computes_fastest(monkeypatch):
    assert devices.compute_dtype(torch.device("cuda:1")) == torch.float16
    assert devices.compute_dtype(torch.device("mps")) == torch.float32
    for capabilities, dtype in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert devices.compute_dtype(torch.device("cpu")) == dtype
        with devices.autocast(torch.device("cpu")):
            assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype
