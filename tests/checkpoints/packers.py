"""Packers of quantized weights, by explicit loops over what the formats say: oracles for readers.

Each gives the tensors of one layer as the format has them on disk.
"""

from __future__ import annotations

import torch


def words(values: list[int], bits: int, width: int = 32) -> list[int]:
    """Unsigned integers of `width` bits, in whose stream bit i·b is the first of code i."""
    stream = 0
    for i, value in enumerate(values):
        stream |= (value & (1 << bits) - 1) << i * bits
    count = -(-len(values) * bits // width)
    return [stream >> i * width & (1 << width) - 1 for i in range(count)]


def int32(rows: list[list[int]]) -> torch.Tensor:
    signed = [[w - (1 << 32) if w >> 31 else w for w in row] for row in rows]
    return torch.tensor(signed, dtype=torch.int32)


def pack_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [R, C·b/32] of codes [R, C]."""
    return int32([words(row, bits) for row in codes.tolist()])


def pack_bytes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [R, C·b/8] of codes [R, C]."""
    return torch.tensor([words(row, bits, 8) for row in codes.tolist()], dtype=torch.uint8)


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column of each nibble of a word, lowest first."""


def awq_words(codes: torch.Tensor) -> torch.Tensor:
    columns = codes.shape[1]
    return pack_rows(
        torch.stack(
            [codes[:, base + offset] for base in range(0, columns, 8) for offset in AWQ_ORDER],
            dim=1,
        ),
        4,
    )


def awq_gemm(codes: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor):
    """codes [N, K], zero and scale [N, G]."""
    return {
        "qweight": awq_words(codes.T),
        "qzeros": awq_words(zero.T),
        "scales": scale.T.contiguous(),
    }


def awq_padding(groups: int, group: int) -> int:
    """Scales of a row with padding."""
    words_ = (groups + 7) // 8
    if group == 64:
        words_ = (words_ + 1) // 2 * 2
    if group == 32:
        words_ = (words_ + 3) // 4 * 4
    return words_ * 8


def padded(part: torch.Tensor, columns: int) -> torch.Tensor:
    result = torch.zeros(part.shape[0], columns, dtype=part.dtype)
    result[:, : part.shape[1]] = part
    return result


def awq_gemv(codes: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor):
    width = awq_padding(scale.shape[1], codes.shape[1] // scale.shape[1])
    return {
        "qweight": pack_rows(codes, 4),
        "qzeros": pack_rows(padded(zero, width), 4),
        "scales": padded(scale, width),
    }


def awq_gemv_fast(codes: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor):
    """Four rows, 64 columns at a time; of these 32, by pairs (8a + 2b) in turns about a."""
    n, k = codes.shape
    rows = []
    for top in range(0, n, 4):
        row = []
        for left in range(0, k, 64):
            sequence = []
            for r in range(top, top + 4):
                for start in (left, left + 32):
                    turned = [8 * a + 2 * b + h for b in range(4) for a in range(4) for h in (0, 1)]
                    for eight in range(0, 32, 8):
                        part = turned[eight : eight + 8]
                        sequence += [int(codes[r, start + c]) for c in part[0::2] + part[1::2]]
            row += [
                sequence[i] | sequence[i + 1] << 4 | sequence[i + 2] << 8 | sequence[i + 3] << 12
                for i in range(0, len(sequence), 4)
            ]
        rows.append([w - (1 << 16) if w >> 15 else w for w in row])
    width = awq_padding(scale.shape[1], k // scale.shape[1])
    return {
        "qweight": torch.tensor(rows, dtype=torch.int16),
        "scales": padded(scale, width).T.contiguous(),
        "qzeros": padded(-(scale.float() * zero).half(), width).T.contiguous(),
    }


def gptq(codes, zero, scale, bits: int, g_idx: torch.Tensor, version: int = 1):
    """codes [N, K], zero and scale [N, G]; v1 stores zero points less one."""
    stored = [
        [(z - 1 if version == 1 else z) % (1 << bits) for z in row] for row in zero.T.tolist()
    ]
    return {
        "qweight": pack_rows(codes, bits).T.contiguous(),
        "qzeros": int32([words(row, bits) for row in stored]),
        "scales": scale.T.contiguous(),
        "g_idx": g_idx.to(torch.int32),
    }


def hqq(codes, zero, scale, bits: int, axis: int, group: int):
    """codes [R, C] as grouped, zero and scale as they are; `shape` is the caller's.

    The rows are cut into parts, and word r holds row r of each, the first part's highest.
    """
    width, parts, dtype = {
        8: (8, 1, torch.uint8),
        4: (4, 2, torch.uint8),
        3: (3, 10, torch.int32),
        2: (2, 4, torch.uint8),
        1: (1, 8, torch.uint8),
    }[bits]
    rows = codes.tolist()
    height = (len(rows) + parts - 1) // parts
    rows += [[0] * len(rows[0])] * (height * parts - len(rows))
    packed = [
        [
            sum(rows[part * height + r][c] << width * (parts - 1 - part) for part in range(parts))
            for c in range(len(rows[0]))
        ]
        for r in range(height)
    ]
    return {
        "W_q": torch.tensor(packed, dtype=dtype),
        "scale": scale,
        "zero": zero,
        "nbits": torch.tensor(bits, dtype=torch.int32),
        "group_size": torch.tensor(group, dtype=torch.int32),
        "axis": torch.tensor(axis, dtype=torch.int32),
        "packing": text("3bit_32" if bits == 3 else f"{bits}bit_u8"),
        "view_as_float": torch.tensor(0, dtype=torch.uint8),
        "quant_scale": torch.tensor(0, dtype=torch.uint8),
        "quant_zero": torch.tensor(0, dtype=torch.uint8),
        "compute_dtype": text("torch.float16"),
        "unpack_view_dtype": text("torch.int32" if bits == 3 else "torch.uint8"),
        "stores_quant_config": torch.tensor(1, dtype=torch.uint8),
    }


def text(value: str) -> torch.Tensor:
    return torch.tensor([ord(c) for c in value], dtype=torch.uint8)


def row_pairs(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [N/2, K] of signed codes [N, K]: row 2i in the low half, row 2i + 1 in the high one."""
    rows = codes.tolist()
    return torch.tensor(
        [
            [low & 15 | (high & 15) << 4 for low, high in zip(rows[i], rows[i + 1], strict=True)]
            for i in range(0, len(rows), 2)
        ],
        dtype=torch.uint8,
    )


FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def fp4_values(codes: torch.Tensor) -> torch.Tensor:
    """float64 values of E2M1 codes."""
    return torch.tensor([*FP4, *(-v for v in FP4)], dtype=torch.float64)[codes.long()]
