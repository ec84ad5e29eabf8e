"""Write the tables of determinism.md from the analysis in `gqc.passes.order_of_k`.

python docs/determinism.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gqc.dialects.text import parse_ir
from gqc.errors import GqcError
from gqc.passes.helpers import matmuls
from gqc.passes.order_of_k import BATCH, buckets_of, has_scale_of_batch
from gqc.passes.pipeline import pipeline, run_stages
from gqc.targets import TARGETS

PAGE = Path(__file__).with_name("determinism.md")
START, END = "<!-- tables: python docs/determinism.py -->\n", "<!-- end -->\n"

SCHEMES = (
    *(f"int{bits}_g16" for bits in range(1, 9)),
    *(f"int{bits}_g32" for bits in range(1, 9)),
    *("int3_g64_sym", "int4_g128", "int4_g128_sym", "int8_g256", "int4_row", "int8_row_sym"),
    *("w4a16_mxfp4", "w6a16_mxfp6", "w6a16_mxfp6_e3m2", "w8a16_mxfp8", "w8a16_mxfp8_e5m2"),
    *("w8a16_mxint8", "w4a16_nvfp4", "mxfp4", "mxfp6", "mxfp8", "mxint8", "nvfp4", "mxfp8_mxfp4"),
    *("w2a8_g32", "w4a8_g32", "w4a8_g32_asym", "w8a8_g128"),
    *("w4a16_nf4", "w8a16_fp8", "w8a16_fp8_g128"),
)
"""One of each kind; `nvfp4_static` is as `nvfp4`, but for the tensor scale of x."""
ACTIVATIONS = ("bf16", "f16", "f32")
N = K = 4096


def cell(scheme: str, target: str, activation: str, deterministic: str = "", n: int = N) -> str:
    """Buckets of rows in which a row has the same bits, of a layer [n, 4096]; `batch` where they
    depend on other rows, `refused` if the option is, `-` where the target refuses the scheme."""
    w, x, y = (f"tensor<{shape}x{activation}>" for shape in (f"{n}x{K}", f"?x{K}", f"?x{n}"))
    module = parse_ir(f"""
    func.func @forward(%x : {x}) -> {y} {{
      %w = gq.weight @weight : {w}
      %y = gq.matmul_t %x, %w : ({x}, {w}) -> {y}
      func.return %y : {y}
    }}""")
    stages = pipeline((f"*={scheme}",), target, deterministic=deterministic)
    try:
        run_stages(module, [stage for stage in stages if stage.name != "kernels"])
    except GqcError as error:
        return "refused" if "deterministic" in str(error) else "-"
    (matmul,) = matmuls(module)
    if has_scale_of_batch(matmul):
        return "batch"
    row = TARGETS[target].in_one_order() if deterministic else TARGETS[target]
    buckets = buckets_of(matmul, row)
    assert (BATCH in matmul.attributes) == (len(buckets) > 1)
    return " \\| ".join(map(str, buckets)) if len(buckets) > 1 else "any"


def table(activation: str) -> str:
    """Schemes by targets; neighbours that are alike share a row or a column."""
    rows = {s: [cell(s, t, activation) for t in TARGETS] for s in SCHEMES}
    columns = together(list(TARGETS), list(zip(*rows.values(), strict=True)))
    places = [list(TARGETS).index(names[0]) for names in columns]
    lines = [f"| scheme | {' | '.join(', '.join(names) for names in columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for names in together(list(rows), list(map(tuple, rows.values()))):
        cells = [rows[names[0]][place] for place in places]
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def together(names: Sequence[str], values: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """Names of equal values together, in the order of the first."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, value in zip(names, values, strict=True):
        groups.setdefault(value, []).append(name)
    return list(groups.values())


def tables() -> str:
    return "\n".join(f"{a} activations:\n\n{table(a)}\n" for a in ACTIVATIONS)


def page(text: str) -> str:
    """The page with new tables."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{tables()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
