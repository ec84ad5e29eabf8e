"""torch.ops.gqc.matmul: its contract as an operator, and its errors."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import gqc
from gqc.runtime.ops import LAUNCHES
from gqc.targets import ANY

matmul = torch.ops.gqc.matmul


def arguments(dtype: torch.dtype = torch.float32, bias: bool = True, target: str = "cpu") -> dict:
    """Arguments of one call: x [5, 64] by a weight [40, 64]."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 40, bias=bias)).to(dtype).requires_grad_(False)
    compiled: Any = gqc.compile(model, scheme="int4_g32", target=target)
    (node,) = (n for n in compiled[0].graph.nodes if n.target is matmul.default)
    state = compiled.state_dict()
    return {
        "x": torch.randn(5, 64).to(dtype),
        "others": [],
        "weights": [state[f"0.weight_{part}"] for part in ("packed", "scale", "zero")],
        "bias": state.get("0.bias"),
        "kernel": node.args[4],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(dtype, bias):
    given = arguments(dtype, bias)
    for x in (given["x"], given["x"][:0], given["x"].view(5, 1, 64)):
        torch.library.opcheck(matmul.default, tuple({**given, "x": x}.values()))


def test_shapes():
    given = arguments()
    for shape in ((64,), (0, 64), (1, 64), (2, 3, 64), (2, 0, 64), (2, 1, 3, 64)):
        for device in ("cpu", "meta"):
            weights = [w.to(device) for w in given["weights"]]
            x, bias = torch.ones(shape, device=device), given["bias"].to(device)
            y = matmul(x, [], weights, bias, given["kernel"])
            assert y.shape == (*shape[:-1], 40) and y.dtype == x.dtype and y.is_contiguous()


def test_does_not_write_its_arguments():
    given = arguments()
    tensors = [given["x"], *given["weights"], given["bias"]]
    before = [t.clone() for t in tensors]
    first = matmul(**given)
    assert torch.equal(matmul(**given), first)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))


def test_threads_agree():
    """The number of threads changes no bit."""
    given = arguments()
    x = torch.randn(33, 64)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(matmul(**{**given, "x": x}))
    assert torch.equal(*results)


def test_unknown_kernel():
    given = arguments()
    with pytest.raises(RuntimeError, match="kernel matmul_of_yore is not known to this process"):
        matmul(**{**given, "kernel": "matmul_of_yore"})


def test_the_key_says_what_is_run():
    given = arguments()
    spec = LAUNCHES[given["kernel"]]
    assert given["kernel"].startswith("matmul_f32_ui4_g32_f16_rescale_f16_40x64_bias.cpu_")
    assert arguments()["kernel"] == given["kernel"], "the same matmul has the same key"
    assert arguments(bias=False)["kernel"] != given["kernel"]
    *bounded, last = (rows for rows, _ in spec.buckets)
    assert bounded == sorted(bounded) and last == ANY


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64], ids=str)
def test_activations_of_another_dtype(dtype):
    given = arguments()
    with pytest.raises(TypeError, match=rf"torch.float32 activations, not {dtype}: convert"):
        matmul(**{**given, "x": given["x"].to(dtype)})


@pytest.mark.parametrize("part", ["weights", "bias"])
def test_weights_of_another_dtype(part):
    """A compiled model that is converted says so: its scales would be read as another format."""
    given = arguments(torch.bfloat16)
    if part == "weights":
        words, *rest = given["weights"]
        given["weights"] = [words, *(t.bfloat16() for t in rest)]
    else:
        given["bias"] = given["bias"].float()
    with pytest.raises(TypeError, match="convert a model before it is compiled, not after"):
        matmul(**given)


@pytest.mark.parametrize("shape", [(5, 63), (5, 128), (0, 63), (32, 2)])
def test_another_input_size(shape):
    given = arguments()
    for device in ("cpu", "meta"):  # found while tracing, too
        x = torch.ones(shape, device=device)
        with pytest.raises(ValueError, match=r"takes x \[\.\.\., 64\], not \[\d+, \d+\]"):
            matmul(**{**given, "x": x})


def test_scales_that_no_kernel_reads():
    given = arguments()
    with pytest.raises(ValueError, match="takes 1 inputs, not 2"):
        matmul(**{**given, "others": [torch.ones(1)]})


@pytest.mark.parametrize("part", range(4))
def test_arrays_of_another_shape(part):
    """What is too small would be read out of bounds."""
    given = arguments()
    arrays = [*given["weights"], given["bias"]]
    arrays[part] = arrays[part][..., :1].contiguous()
    *given["weights"], given["bias"] = arrays
    with pytest.raises(ValueError, match=r"reads weights of .*, not .*: give it the parts"):
        matmul(**given)


def test_a_part_that_was_replaced():
    compiled: Any = gqc.compile(nn.Sequential(nn.Linear(64, 40)), scheme="int4_g32", target="cpu")
    compiled[0].weight_scale = torch.ones(1, 1, 1, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"reads weights of .*, not .*\[1, 1, 1\]"):
        compiled(torch.ones(2, 64))


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, every other element of another tensor."""
    return torch.stack((tensor, tensor + 1), -1)[..., 0]


@pytest.mark.parametrize("part", range(5))
def test_strided_arrays(part):
    given = arguments()
    expected = matmul(**given)
    arrays = [given["x"], *given["weights"], given["bias"]]
    arrays[part] = strided(arrays[part])
    assert not arrays[part].is_contiguous()
    given["x"], *given["weights"], given["bias"] = arrays
    assert torch.equal(matmul(**given), expected)


def test_arrays_at_odd_addresses():
    """Views one element into their storage, as of files mapped to memory."""
    given = arguments()
    expected = matmul(**given)
    shifted = [
        torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape)
        for t in (given["x"], *given["weights"], given["bias"])
    ]
    given["x"], *given["weights"], given["bias"] = shifted
    assert torch.equal(matmul(**given), expected)


@pytest.mark.parametrize("whole", [True, False])
def test_a_models_strided_bias(whole):
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(64, 40)).requires_grad_(False)
    x = torch.randn(5, 64)
    expected = gqc.compile(model, scheme="int4_g32", target="cpu")(x)
    model[0].bias = nn.Parameter(strided(model[0].bias.data), requires_grad=False)
    compiled = gqc.compile(model, x if whole else None, scheme="int4_g32", target="cpu")
    assert torch.equal(compiled(x), expected)


def test_a_computed_bias():
    """One number spread over a bias has a stride of zero."""

    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 64))
            self.number = nn.Parameter(torch.randn(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight, self.number.expand(32))

    torch.manual_seed(0)
    model, x = Spread().requires_grad_(False), torch.randn(5, 64)
    compiled: Any = gqc.compile(model, x, scheme="int8_g32", target="cpu")
    assert [row.decision for row in compiled.report().rows] == ["emulated"]
    exact = compiled(x) - model.number
    plain = nn.functional.linear(x, model.weight)
    assert torch.allclose(exact, plain, atol=0.2) and not torch.allclose(exact, -plain, atol=0.2)


def test_tensors_on_another_device():
    spec = LAUNCHES[arguments()["kernel"]]
    here, there = (
        [
            torch.empty(shape, dtype=dtype, device=device)
            for dtype, shape in ((torch.float32, (5, 64)), *spec.weights)
        ]
        for device in ("cpu", "meta")
    )
    spec.check(here[:1], here[1:])
    with pytest.raises(ValueError, match="not on one device: move one"):
        spec.check(here[:1], there[1:])
    with pytest.raises(ValueError, match="runs on the CPU: move the model and its input there"):
        spec.check(there[:1], there[1:])


def test_converted_parts():
    """Scales of another dtype are a clear error, not other numbers."""
    layer = gqc.compile(nn.Linear(64, 40).bfloat16(), scheme="int4_g32")
    layer.weight_scale = layer.weight_scale.bfloat16()
    with pytest.raises(TypeError, match="compiled for weights of"):
        layer(torch.ones(2, 64).bfloat16())


def test_gpu_kernels_in_tritons_interpreter():
    """A model for a GPU runs in Triton's interpreter, which is chosen before triton is imported."""
    code = """
import gqc, torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 24)).bfloat16()
scheme = {"0": "int4_g32", "2": "int3_row"}
x = torch.randn(19, 64).bfloat16()
for example in (x, None):
    gpu = gqc.compile(model, example, scheme=scheme, target="sm_90")
    cpu = gqc.compile(model, example, scheme=scheme, target="cpu")
    with torch.no_grad():
        y, expected = gpu(x), cpu(x)
    assert {kernel.target for kernel in gpu.kernels} == {"sm_90"}
    assert (y - expected).norm() < 0.01 * expected.norm(), (y - expected).norm() / expected.norm()
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


def test_native_kernels_in_tritons_interpreter():
    """Codes and scales as a matrix unit takes them, by quantizer and matmul, beside the CPU's."""
    code = """
import gqc, torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(96, 40)).bfloat16()
x = torch.randn(2, 5, 96).bfloat16()
for target, scheme in (("sm_100", "nvfp4"), ("sm_120", "mxfp8_mxfp4"), ("gfx950", "mxfp6")):
    for example in (x, None):
        gpu = gqc.compile(model, example, scheme=scheme, target=target)
        cpu = gqc.compile(model, example, scheme=scheme, target="cpu")
        assert [row.decision for row in gpu.report().rows] == ["native"]
        with torch.no_grad():
            y, expected = gpu(x), cpu(x)
        assert y.shape == expected.shape
        assert (y - expected).norm() < 0.005 * expected.norm(), (target, scheme)
    assert torch.equal(gpu[0].weight, cpu[0].weight)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
