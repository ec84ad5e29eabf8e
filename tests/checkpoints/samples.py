"""Small checkpoints of every format, with the parameters that they hold."""

from __future__ import annotations

from collections.abc import Callable

from checkpoints import packed, peers, quark
from checkpoints.sample import Sample

SAMPLES: dict[str, dict[str, Callable[[], Sample]]] = {
    "dense": {"one": lambda: packed.plain(1), "sharded": lambda: packed.plain(3)},
    "awq": {
        **{version: lambda version=version: packed.awq(version) for version in ("gemm", "gemv")},
        "gemm_row": lambda: packed.awq("gemm", 128),
        "gemv_64": lambda: packed.awq("gemv", 64),
        "gemv_128": lambda: packed.awq("gemv", 128, k=256),
        "gemv_fast": lambda: packed.awq("gemv_fast"),
        "gemv_fast_64": lambda: packed.awq("gemv_fast", 64, k=192),
    },
    "gptq": {
        **{
            f"{bits}bit_v{version}{'_order' if order else ''}": (
                lambda bits=bits, version=version, order=order: packed.gptq(bits, version, order)
            )
            for bits in (2, 3, 4, 8)
            for version in (1, 2)
            for order in (False, True)
        },
        "row": lambda: packed.gptq(4, 1, False, -1),
        "sym": lambda: packed.gptq(4, 1, False, sym=True),
        "short_group": lambda: packed.gptq(4, 1, False, 64),
        "short_group_order": lambda: packed.gptq(4, 2, True, 64, sym=True, k=160),
        "sym_8bit_order": lambda: packed.gptq(8, 2, True, sym=True),
    },
    "auto_round": {name: lambda name=name: packed.auto_round(name) for name in packed.AUTO_ROUND},
    "hqq": {
        f"{bits}bit_axis{axis}": lambda bits=bits, axis=axis: packed.hqq(bits, axis)
        for bits in (1, 2, 3, 4, 8)
        for axis in (0, 1)
    },
    "modelopt": {
        algorithm: lambda algorithm=algorithm: packed.modelopt(algorithm)
        for algorithm in (
            *("NVFP4", "W4A16_AWQ", "FP8", "MIXED_PRECISION", "FP8_PER_CHANNEL_PER_TOKEN"),
            *("fp8_pb_wo", "MXFP8", "W4A8_MXFP4_FP8", "W4A8_AWQ", "W8A8_SQ_PER_CHANNEL"),
        )
    },
    "fp8": {
        "blocks": packed.fp8,
        **{name: lambda name=name: packed.fp8_variant(name) for name in packed.FP8},
    },
    "quark": {name: lambda name=name: quark.quark(name) for name in quark.QUARK},
    "bitsandbytes": {
        name: lambda name=name: packed.bitsandbytes(name) for name in packed.BITSANDBYTES
    },
    "gpt_oss": {"mxfp4": packed.gpt_oss},
    "gqc": {name: lambda form=form: packed.own(form) for name, form in packed.OWN.items()},
    "compressed_tensors": peers.COMPRESSED_TENSORS,
    "torchao": peers.TORCHAO,
    "gguf": peers.GGUF,
}
"""Checkpoints by format and variant."""
