"""Weights of all experts of a layer in one parameter of three dimensions, quantized.

Of a parameter `<name>` [E, N, K] the parts are `<name>_<part>`. Where gates and others are halves
of N, blocks are made small enough that none lies in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from gqc.checkpoints.bits import unpack
from gqc.checkpoints.microscaled import MX_BLOCK, NVFP4_BLOCK, positive
from gqc.checkpoints.reader import SCALES, Stack
from gqc.checkpoints.weights import Transposed, block_scaled
from gqc.formats.block_scaled import BlockScaled, repeated
from gqc.frontend.experts import GATE_UP

ELEMENTS = {"F8_E4M3": "f8E4M3FN", "F8_E5M2": "f8E5M2"}


Stacked = BlockScaled | Transposed


def of_model(stack: Stack, weight: BlockScaled) -> Stacked:
    """Weights [E, N, K] as the model has them."""
    return Transposed(weight) if stack.transposed else weight


def float8(stack: Stack, part: str, block: tuple[int, int]) -> Stacked:
    """weight e4m3 or e5m2, and factors: [] or [1], [E] or [E, 1, 1], [E, N, 1], or of blocks A×B
    [E, ⌈N/A⌉, ⌈K/B⌉]. Raises GqcError where blocks cross halves of N, which may have their own.
    """
    element = ELEMENTS.get(stack.spec("weight", 3).dtype, "f8E4M3FN")
    codes = stack.matrices("weight", [*ELEMENTS]).view(torch.uint8)
    experts, n, k = codes.shape
    factors = (*SCALES, "F8_E8M0")
    shape = stack.spec(part).shape
    halves = n // 2 if stack.name.endswith(GATE_UP) and n % 2 == 0 else n
    blocks = experts, -(-n // block[0]), -(-k // block[1])
    if shape in ((), (1,), (experts,), (experts, 1), (experts, 1, 1)):
        scale = stack.read(part, factors, shape).reshape(-1, 1, 1).expand(experts, n // halves, 1)
        size = (1, halves, None)
    elif shape in ((experts, n), (experts, n, 1), (experts, 1, n)):
        scale, size = stack.read(part, factors, shape).reshape(experts, n, 1), (1, 1, None)
    elif shape == blocks and not stack.transposed and (halves == n or halves % block[0] == 0):
        a, b = math.gcd(halves, block[0]), math.gcd(k, block[1])
        scale = repeated(stack.read(part, factors, shape), block[0] // a, 1)[:, : n // a]
        scale = repeated(scale, block[1] // b, 2)[..., : k // b]
        size = (1, a, b)
    else:
        raise stack.error(
            part,
            f"is {stack.spec(part)} for {experts} weights {[n, k]}, expected one factor for all or "
            f"for each, [{experts}, {n}, 1] for rows, or {[*blocks]} for blocks of {block[0]}x"
            f"{block[1]} that end where half of {n} rows do",
        )
    return of_model(stack, block_scaled(element, size, codes, scale.contiguous()))


def four_bits(stack: Stack, block: int, formats: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Codes of E2M1 [E, N, K] in bytes of two along K, and scales [E, N, K/block]."""
    stored = stack.matrices("weight", ["U8", "I8"]).view(torch.uint8)
    k = 2 * stored.shape[2]
    scale = stack.matrices("weight_scale", formats)
    if k % block or scale.shape != (*stored.shape[:2], k // block):
        raise stack.error(
            "weight_scale",
            f"is {stack.spec('weight_scale')} for weights {stack.spec('weight')} in blocks of "
            f"{block}",
        )
    return unpack(stored, 4, k), scale


def nvfp4(stack: Stack) -> Stacked:
    """weight u8, weight_scale e4m3, and weight_scale_2, a factor for all experts."""
    codes, scale = four_bits(stack, NVFP4_BLOCK, ["F8_E4M3"])
    factor = stack.number("weight_scale_2")
    scale = positive(stack, "weight_scale", scale)
    block = (1, 1, NVFP4_BLOCK)
    return of_model(stack, block_scaled("f4E2M1FN", block, codes, scale, tensor_scale=factor))


def mxfp4(stack: Stack) -> Stacked:
    """weight u8, weight_scale e8m0 or its bytes."""
    codes, scale = four_bits(stack, MX_BLOCK, ["U8", "F8_E8M0"])
    if bool((scale.view(torch.uint8) == 0xFF).any()):
        raise stack.error("weight_scale", "holds NaN (0xFF); the file is damaged")
    scale = scale.view(torch.float8_e8m0fnu)
    return of_model(stack, block_scaled("f4E2M1FN", (1, 1, MX_BLOCK), codes, scale))
