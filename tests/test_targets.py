"""Targets by name, and `auto`: where the model lies, on the nearest row that its GPU can run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import gqc
from gqc.errors import GqcError
from gqc.targets import TARGETS, resolve


def model_on(*devices: str, buffers: tuple[str, ...] = ()) -> Any:
    """What `resolve` looks at of a model on devices that need not exist."""

    def tensors(names: tuple[str, ...]) -> Any:
        return lambda: iter([SimpleNamespace(device=torch.device(name)) for name in names])

    return SimpleNamespace(parameters=tensors(devices), buffers=tensors(buffers))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that the machine has GPUs: `sm_90` and such by index, or AMD's names."""

    def pretend(*names: str) -> None:
        def capability(device: Any = None) -> tuple[int, int]:
            digits = names[torch.device(device or 0).index or 0].removeprefix("sm_")
            return int(digits[:-1]), int(digits[-1])

        def properties(device: Any = None) -> Any:
            name = names[torch.device(device or 0).index or 0]
            return SimpleNamespace(gcnArchName=f"{name}:sramecc+:xnack-")

        monkeypatch.setattr(torch.version, "hip", "6.4" if names[0].startswith("gfx") else None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)

    return pretend


@pytest.mark.parametrize("name", [n for n in TARGETS if not n.startswith("cpu")])
def test_a_row_is_its_own_nearest(name, gpus):
    gpus(name)
    assert resolve("auto", model_on("cuda:0")).name == name


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        *(("sm_82", "sm_80"), ("sm_87", "sm_86"), ("sm_88", "sm_86")),
        *(("sm_101", "sm_100"), ("sm_121", "sm_120")),
    ],
)
def test_a_gpu_without_a_row(gpu, name, gpus):
    gpus(gpu)
    assert resolve("auto", model_on("cuda:0")).name == name


@pytest.mark.parametrize("gpu", ["sm_70", "sm_75", "sm_110", "gfx90a", "gfx1100"])
def test_a_gpu_of_no_family(gpu, gpus):
    gpus(gpu)
    with pytest.raises(GqcError, match=f"for this GPU, {gpu}: give target=, one of sm_80, "):
        resolve("auto", model_on("cuda:0"))


def test_auto_is_where_the_model_lies(gpus):
    gpus("sm_90", "sm_80")
    cpu = resolve("cpu").name
    assert resolve("auto", model_on("cpu", "cpu")).name == cpu
    assert resolve("auto", model_on("cuda:1")).name == "sm_80"
    assert resolve("auto", model_on("cuda:0", buffers=("cpu",))).name == "sm_90"
    assert resolve("auto", model_on(buffers=("cuda:0",))).name == "sm_90"
    assert resolve("auto", model_on()).name == resolve("auto").name == cpu


def test_a_cpu_model_beside_a_gpu(gpus):
    """Its activations are f32, which no GPU target multiplies; it is not to run there."""
    gpus("sm_90")
    compiled = gqc.compile(nn.Sequential(nn.Linear(64, 8)), scheme="int4_g32")
    assert compiled.report().target == resolve("cpu").name
    assert compiled(torch.ones(2, 64)).shape == (2, 8)


def test_a_model_on_several_devices(gpus):
    gpus("sm_90", "sm_90", "sm_80")
    assert resolve("auto", model_on("cuda:0", "cuda:1")).name == "sm_90"
    for devices in (("cuda:0", "cpu"), ("cuda:1", "cuda:2")):
        with pytest.raises(GqcError, match=f"lies on {devices[0]} and {devices[1]}: move it"):
            resolve("auto", model_on(*devices))


def test_a_device_without_kernels():
    with pytest.raises(GqcError, match="no target is made for the model's device mps: give target"):
        resolve("auto", model_on("mps"))


def test_what_is_no_model(gpus):
    with pytest.raises(GqcError, match="cannot compile a function: give an nn"):
        gqc.compile(lambda x: x)  # pyright: ignore[reportArgumentType]
