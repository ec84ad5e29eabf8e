"""Fused quantizers: the same module before and after, and what their kernels compute."""

from __future__ import annotations

import pytest
import torch
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from gqc.dialects import gq
from gqc.dialects.fx import CallOp
from gqc.dialects.interpret import interpreter, run
from gqc.dialects.tile_interpreter import run_kernel
from gqc.frontend.capture import capture
from gqc.frontend.import_fx import import_fx
from gqc.native import native
from gqc.passes.fuse_producers import FuseProducers
from gqc.passes.pipeline import pipeline, run_stages
from gqc.quantizers import microscaling
from gqc.schemes import parse_scheme

KINDS = ("hugging_face", "gemma", "torch", "silu")


@pytest.mark.parametrize("element", ["bf16", "f32"])
@pytest.mark.parametrize("kind", KINDS)
def test_fusing_changes_no_bit(producer, kind, element):
    case = producer(kind, 96, element=element)
    imported = import_fx(capture(case.module, case.inputs))
    *stages, _ = pipeline(("*=mxfp8",), "sm_100")
    stages[-1] = type(stages[-1])("legal", stages[-1].passes[:-1])
    run_stages(imported.module, stages)
    before = run(imported.module, imported.weights, case.inputs)
    FuseProducers().apply(Context(), imported.module)
    imported.module.verify()
    after = run(imported.module, imported.weights, case.inputs)
    assert torch.equal(after[0], before[0])
    (fused,) = [op for op in imported.module.walk() if isinstance(op, gq.FusedOp)]
    outside = [
        op.callee.data
        for op in imported.module.walk()
        if isinstance(op, CallOp) and op.parent_op() is not fused
    ]
    assert outside == []


@pytest.mark.parametrize("target", ["cpu_avx2", "sm_90", "sm_100", "sm_120", "gfx950"])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels(producer, kind, target):
    """Codes and scales, or values, are those of torch's result. Sums of a row are in another order,
    which may move a number across the boundary between two codes, here less than one in 1000."""
    case = producer(kind, 160, rows=35)
    scheme = parse_scheme("mxfp8").activation
    assert scheme is not None
    expected = microscaling(case.produced(), scheme.type(), scheme.scale_rule)
    kernel = case.kernel(target)
    parts = [expected.dequantize().bfloat16()]
    if (row := native(target, expected.type, expected.type)) is not None:
        codes, scale = gq.LayoutAttr("bytes", scales=row.scales).row.pack(expected, 1)
        parts = [scale, codes]
    found = [torch.zeros_like(part.view(torch.int8)).view(part.dtype) for part in parts]
    run_kernel(interpreter(ModuleOp([kernel.clone()]), {}), kernel, [*case.arguments(), *found])
    for ours, theirs in zip(found, parts, strict=True):
        differ = ours.view(torch.int8) != theirs.view(torch.int8)
        assert differ.float().mean() < 1e-3
    if len(parts) == 1:
        torch.testing.assert_close(found[0], parts[0], rtol=2**-3, atol=0)
