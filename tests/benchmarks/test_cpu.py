"""The CPU benchmark: what is measured is right, and judged by what it should be."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture
def few_copies(benchmark, monkeypatch) -> None:
    monkeypatch.setattr(benchmark("cpu_peers"), "ROTATED_BYTES", 1)


def layer_of(benchmark, name: str, n: int = 128, k: int = 256) -> tuple[Any, np.ndarray]:
    """A layer as the worker makes it, and its weight before."""
    worker = benchmark("cpu_worker")
    weight = worker.random_weight(n, k)
    return worker.peer_of(name).make(weight, 32, torch.get_num_threads()), weight


# Layers


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("scheme", ["int4_g32", "int3_g128_sym", "w4a16_nvfp4"])
def test_gqc_multiplies_by_its_own_weight(benchmark, few_copies, scheme: str, rows: int) -> None:
    layer, _ = layer_of(benchmark, f"gqc {scheme} f32")
    x = benchmark("cpu_worker").random_input(rows, 256)
    y, expected = layer.bind(x)(), x.astype(np.float64) @ layer.weight().T
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-5)


def test_gqc_quantizes_the_input_within_the_time(benchmark, few_copies) -> None:
    layer, _ = layer_of(benchmark, "gqc mxint8 f32")
    assert [len(step.parts) for step in layer.steps] == [0, 2]
    x = benchmark("cpu_worker").random_input(5, 256)
    y, expected = layer.bind(x)().numpy(), x.astype(np.float64) @ layer.weight().T
    assert 1e-3 < np.abs(y - expected).max() / expected.std() < 0.1


def test_gqc_runs_every_copy(benchmark, few_copies) -> None:
    layer, _ = layer_of(benchmark, "gqc int4_g32 f32")
    run = layer.bind(benchmark("cpu_worker").random_input(2, 256))
    first = run().clone()
    (scale,) = [v for v in layer.sets[-1].values() if v.dim() == 3 and v.dtype == torch.float16][:1]
    scale.mul_(2)
    assert layer.copies == 2 and not torch.equal(run(), first)


@pytest.mark.parametrize(("name", "most"), [("torch f32", 1e-5), ("torch bf16", 0.02)])
def test_dense_layers(benchmark, few_copies, name: str, most: float) -> None:
    layer, weight = layer_of(benchmark, name)
    assert np.abs(layer.weight() - weight).max() < 1e-3
    assert benchmark("cpu_worker").error(layer, 256) < most


def test_aten_multiplies_by_the_weight_it_is_said_to_have(benchmark, few_copies) -> None:
    layer, weight = layer_of(benchmark, "aten int4")
    assert np.abs(layer.weight() - weight).max() < 0.01
    assert benchmark("cpu_worker").error(layer, 256) < 0.02


def test_a_wrong_weight_is_an_error(benchmark, few_copies) -> None:
    layer, _ = layer_of(benchmark, "torch f32")
    layer.weights[-1] = layer.weights[-1] * 1.01
    assert benchmark("cpu_worker").error(layer, 256) > 0.01


def test_every_peer_has_its_module(benchmark) -> None:
    peers = benchmark("cpu_peers").PEERS
    assert {
        p.where.split(":")[0] for p in peers.values() if not find_spec(p.where.split(":")[0])
    } == set()


def test_rounding_to_four_bits(benchmark) -> None:
    rounding = benchmark("cpu_peers.rounding")
    weight = benchmark("cpu_worker").random_weight(8, 64)
    rounded = rounding.to_nearest(weight, 32)
    step = rounded.scale.repeat(32, 1)
    assert (np.abs(rounded.dequantized() - weight) <= 0.51 * step + 1e-6).mean() > 0.95
    assert (np.abs(rounded.dequantized() - weight) <= 1.01 * step).all()
    assert (rounded.shifted(3).dequantized() == np.roll(rounded.dequantized(), 3, 0)).all()
    packed = rounding.nibbles(rounded.codes)
    assert (np.stack((packed & 15, packed >> 4), -1).reshape(8, 64) == rounded.codes).all()


# The roof


def test_dots_do_the_operations_that_are_counted(benchmark) -> None:
    roof, steps = benchmark("cpu_roof"), 100
    ones = {"f32": (np.float32, 1), "bf16": (np.uint16, 0x3F80), "int8": (np.uint8, 1)}
    for name, dots in roof.DOTS.items():
        for dot in (dot for dot in dots if all(map(roof.has, dot.needs))):
            memory, array = roof.pages(64, huge=False)
            array.view(ones[name][0])[:] = ones[name][1]
            engine, loop = roof.compiled(dot.loop())
            loop(array.ctypes.data, steps)
            lanes = int(dot.sums.split()[0][1:])
            sums = array.view(np.int32 if name == "int8" else np.float32)[:lanes]
            assert (2 * sums * lanes == steps * dot.operations).all(), dot.intrinsic
            del engine, memory


def test_the_probe_reads_everything(benchmark) -> None:
    roof = benchmark("cpu_roof")
    memory, array = roof.pages(1 << 16, huge=False)
    array[:] = np.random.default_rng(0).integers(0, 256, len(array), np.uint8)
    engine, loop = roof.compiled(roof.reading_loop())
    vector = 64 if roof.has("avx512f") else 32 if roof.has("avx") else 16
    expected = np.bitwise_xor.reduce(array.reshape(-1, roof.STREAMS, vector), axis=0)
    loop(array.ctypes.data, len(array))
    assert (array[:vector] == expected[-1]).all()
    del engine, memory


# Judgement


def document() -> dict[str, Any]:
    known = {
        "gqc int4_g128 bf16": ("16-bit", 4),
        "gqc w4a16_nvfp4 bf16": ("16-bit", 4),
        "gqc int8_g128 bf16": ("16-bit", 8),
        "gqc int4_g128 f32": ("32-bit", 4),
        "gqc w4a8_g128 bf16": ("int8", 4),
        "torch bf16": ("16-bit", 16),
        "aten int4": ("16-bit", 4),
        "llama.cpp Q8_0": ("int8", 8),
        "torch f32": ("32-bit", 32),
    }
    times = dict(zip(known, (1.0, 1.5, 2.0, 1.5, 0.5, 4.0, 3.0, 2.0, 6.0), strict=True))
    rows = [
        {"peer": name, "n": 8, "k": 8, "group": 0, "m": m, "median_ms": ms, "bytes": 10**7}
        | {"read_gbs": 20.0, "read_small_pages_gbs": 16.0}
        for m in (1, 64)
        for name, ms in times.items()
    ]
    peers = {name: {"numerics": x, "bits": bits} for name, (x, bits) in known.items()}
    return {"peers": peers, "results": rows, "errors": []}


def test_each_time_is_compared_with_the_best_of_its_kind(benchmark) -> None:
    judged = benchmark("cpu_judgement").judge(document())
    best = {(j.row["peer"], j.row["m"]): (j.peer["peer"], j.ratio) for j in judged}
    for m in (1, 64):
        assert best["gqc int4_g128 bf16", m] == ("aten int4", 3.0)
        assert best["gqc int8_g128 bf16", m] == ("torch bf16", 2.0)
        assert best["gqc int4_g128 f32", m] == ("torch f32", 4.0)
        assert best["gqc w4a8_g128 bf16", m] == ("llama.cpp Q8_0", 4.0)


def test_shares_of_the_machine_and_of_the_dense_matmul(benchmark) -> None:
    judged = benchmark("cpu_judgement").judge(document())
    found = {(j.row["peer"], j.row["m"]): j for j in judged}
    one, many = found["gqc int4_g128 bf16", 1], found["gqc int4_g128 bf16", 64]
    assert (one.share, one.share_small, one.dense, one.of_four_bits) == (0.5, 0.625, None, 1.0)
    assert (many.share, many.dense, many.of_four_bits) == (None, 4.0, None)
    assert found["gqc w4a16_nvfp4 bf16", 1].of_four_bits == 1.5
    assert found["gqc int4_g128 f32", 64].dense == 4.0
    assert found["gqc int8_g128 bf16", 1].of_four_bits is None


def test_means_are_geometric_and_of_few_rows(benchmark) -> None:
    judgement = benchmark("cpu_judgement")
    means = {(x, name): mean for x, name, mean in judgement.means(judgement.judge(document()))}
    assert means["16-bit", "all"] == pytest.approx((3.0 * 2.0 * 2.0) ** (1 / 3))
    assert means["int8", "gqc w4a8_g128 bf16"] == pytest.approx(4.0)


# Processes


def test_what_cannot_be_measured_is_absent_with_a_reason(benchmark) -> None:
    cpu = benchmark("cpu")
    with_all = {"shapes": ["64x64"], "rows": [1], "groups": [32], "threads": 1, "repeats": 1}
    options = argparse.Namespace(**with_all, error_shape="", python=[], huge_pages=False)
    found = cpu.measure("gqc int9_g1 f32", options)
    assert "unknown scheme 'int9_g1'" in found["peer"]["absent"] and found["results"] == []


def test_new_rows_replace_those_of_the_same_case(benchmark) -> None:
    cpu, old = benchmark("cpu"), document()
    row = old["results"][0] | {"median_ms": 9.0}
    cpu.merge(old, row["peer"], {"peer": {"bits": 4}, "results": [row], "errors": []})
    times = [r["median_ms"] for r in old["results"] if r["peer"] == row["peer"]]
    assert times == [9.0, 1.0] and old["peers"][row["peer"]] == {"bits": 4}
