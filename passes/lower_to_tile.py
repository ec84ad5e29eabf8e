"""Lower to tile kernels: each scheduled matmul becomes a launch of one kernel for each bucket."""

from __future__ import annotations

from dataclasses import dataclass, field

from xdsl.context import Context
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    ArrayAttr,
    ModuleOp,
    SymbolRefAttr,
)
from xdsl.ir import Attribute
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)

from gqc.dialects import gq, tile
from gqc.errors import GqcError
from gqc.integer_dots import INTEGER_DOTS
from gqc.passes.helpers import (
    count,
    layer_name,
    layer_names,
    matmuls,
    replace,
    weight_names,
    weight_of,
)
from gqc.passes.int8_matmul_kernel import Int8MatmulKernel
from gqc.passes.int8_panel_matmul_kernel import Int8PanelMatmulKernel
from gqc.passes.matmul_kernel import MatmulKernel, x_scales
from gqc.passes.panel_matmul_kernel import PanelMatmulKernel
from gqc.passes.scaled_matmul_kernel import build_scaled_matmul
from gqc.targets import ANY, Target, resolve


def kernel_name(matmul: gq.MatmulTOp, unpack: gq.UnpackOp, schedule: gq.ScheduleAttr) -> str:
    """A name that says all that the kernel depends on, but for its tile."""
    type_ = gq.block_scaled(unpack.weight)
    assert type_ is not None
    n, k = gq.tensor_shape(unpack.weight)
    block = type_.block.data[1].data
    group = "row" if block == DYNAMIC_INDEX else f"g{block}"
    zero = f"_{type_.zero_mode.data}_{type_.zero}" if type_.has_zero else ""
    whole = "_tensor_scale" if type_.has_tensor_scale else ""
    x_scale = "_scaled" if x_scales(matmul) else ""
    bias = "_bias" if matmul.bias is not None else ""
    rows = "any" if schedule.rows.data == ANY else f"m{schedule.rows.data}"
    result, x = gq.element_type(matmul.result), gq.block_scaled(matmul.x)
    element = gq.element_type(matmul.x) if x is None else x.element
    activation = f"{result}" if element == result else f"{result}_{element}"
    format_ = f"{type_.element}_{group}_{type_.scale}{zero}{whole}"
    return f"matmul_{activation}{x_scale}_{format_}_{n}x{k}{bias}_{rows}"


def unpack_of(matmul: gq.MatmulTOp) -> gq.UnpackOp:
    """The unpacking of a scheduled matmul's weight."""
    weight = matmul.weight.owner
    unpack = weight.source.owner if isinstance(weight, gq.DcastOp) else weight
    if not isinstance(unpack, gq.UnpackOp):
        raise GqcError(f"{layer_name(matmul)}: its weight is not packed: run assign-layouts first")
    return unpack


def schedules_of(matmul: gq.MatmulTOp) -> list[gq.ScheduleAttr]:
    """Its schedules, one for each bucket of rows; before it has any, none."""
    return [s for s in matmul.schedules or () if isinstance(s, gq.ScheduleAttr)]


@dataclass
class LowerMatmul(RewritePattern):
    """A matmul of unpacked operands is one launch; kernels of equal name and tile are one.

    Buckets of one tile share a kernel, which has the name of the last of them. x is floats or, of a
    native matmul, unpacked codes; the weight is unpacked, and of an emulated matmul dequantized.
    """

    target: str
    kernels: dict[str, tile.KernelOp]
    schedules: dict[str, gq.ScheduleAttr] = field(default_factory=dict)
    """Of the first kernel of each name."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: gq.MatmulTOp, rewriter: PatternRewriter) -> None:
        if op.schedules is None:
            return
        x, weight, unpack = op.x.owner, op.weight.owner, unpack_of(op)
        native = isinstance(x, gq.UnpackOp)
        inputs = [*x.parts] if native else [op.x, *x_scales(op)]
        schedules = schedules_of(op)
        last = {schedule.tiling: schedule for schedule in schedules}
        names = [self.kernel(op, unpack, last[schedule.tiling]) for schedule in schedules]
        rows = [schedule.rows.data for schedule in schedules]
        launch = gq.LaunchOp(names, rows, inputs, unpack.parts, op.bias, [op.result.type])
        describe(launch, op, unpack)
        replace(rewriter, op, [launch])
        casts = [op for op in (x, weight) if isinstance(op, gq.DcastOp | gq.UnpackOp)]
        for dead in dict.fromkeys([*casts, unpack]):
            if not any(result.uses for result in dead.results):
                rewriter.erase(dead)

    def kernel(self, op: gq.MatmulTOp, unpack: gq.UnpackOp, schedule: gq.ScheduleAttr) -> str:
        """Name of the kernel for a schedule, which is built the first time."""
        name = kernel_name(op, unpack, schedule)
        while self.schedules.setdefault(name, schedule) != schedule:
            stem, _, bucket = name.rpartition("_")  # tiles of merged weights may have more columns
            name = f"{stem}_n{schedule.sizes[1]}_{bucket}"
        if name not in self.kernels:
            self.kernels[name] = build_matmul(name, self.target, op, unpack, schedule)
        return name


def build_matmul(
    name: str,
    target: str,
    matmul: gq.MatmulTOp,
    unpack: gq.UnpackOp,
    schedule: gq.ScheduleAttr,
) -> tile.KernelOp:
    """The kernel of a matmul for one schedule."""
    x = matmul.x.owner
    if not isinstance(x, gq.UnpackOp):
        kind = PanelMatmulKernel if schedule.panel.data else MatmulKernel
        return kind(name, target, matmul, unpack, schedule).build()
    if unpack.layout.kind.data == gq.LayoutAttr.BYTES:
        return build_scaled_matmul(name, target, matmul, x, unpack, schedule)
    kind = Int8PanelMatmulKernel if schedule.panel.data else Int8MatmulKernel
    return kind(name, target, matmul, unpack, schedule).build()


def describe(launch: gq.LaunchOp, matmul: gq.MatmulTOp, unpack: gq.UnpackOp) -> None:
    """Say in a launch what it was made of; by these a report finds it."""
    assert matmul.decision is not None
    launch.attributes["decision"] = matmul.decision
    if weight_of(unpack.weight) is not None:
        launch.attributes["layer"] = symbols(layer_names(matmul, unpack.weight))
        launch.attributes["weight"] = symbols(weight_names(unpack.weight))
        launch.attributes["packed"] = unpack.weight.type
        launch.attributes["layout"] = unpack.layout


def symbols(names: list[str]) -> Attribute:
    """A symbol, or several of them."""
    several = [SymbolRefAttr(name) for name in names]
    return ArrayAttr(several) if len(several) > 1 else several[0]


def refuse_other_layouts(module: ModuleOp, target: Target) -> None:
    """Raise one error for all layers whose layout the target's kernels do not read."""
    wanted = gq.LayoutAttr(target.layout, target.lanes)
    dots = INTEGER_DOTS.get(target.name, ())
    read = [wanted, *(gq.LayoutAttr(row.layout, row.lanes) for row in dots)]
    others = [
        f"  {layer_name(op)}: {op.layout}"
        for op in module.walk()
        if isinstance(op, gq.UnpackOp) and op.layout.kind.data != "bytes" and op.layout not in read
    ]
    if others:
        layers = "\n".join(others)
        raise GqcError(
            f"kernels of {target.name} read {wanted}, which {count(len(others), 'layer')} "
            f"cannot give:\n{layers}\nrun legalize and what follows it for one target"
        )


def refuse_other_tiles(module: ModuleOp) -> None:
    """Raise one error for all layers with tiles that kernels cannot be made of."""
    others = [
        f"  {layer_name(matmul)}: {misfit}"
        for matmul in matmuls(module)
        for schedule in schedules_of(matmul)
        if (misfit := misfit_of(schedule, unpack_of(matmul)))
    ]
    if others:
        layers = "\n".join(dict.fromkeys(others))
        raise GqcError(f"no kernel can be made of these tiles:\n{layers}\nchoose others")


def misfit_of(schedule: gq.ScheduleAttr, unpack: gq.UnpackOp) -> str:
    """What is wrong with a tile for a weight, if anything is: its columns lie in one panel of the
    layout, its step of K is of whole groups or in one; where a CPU scales sums, it is one."""
    type_, lanes = gq.block_scaled(unpack.weight), unpack.layout.lanes.data
    assert type_ is not None
    _, columns, step = schedule.sizes
    shape = gq.tensor_shape(unpack.weight)
    group = type_.block_of(shape)[1]
    if lanes > 1 and lanes % columns:
        return f"{columns} columns do not divide the {lanes} lanes of a panel"
    if group == shape[1]:
        return ""
    if step % group and group % step:
        return f"a step of {step} is neither in a group of {group} nor whole groups"
    if lanes > 1 and schedule.scale.data != "before" and step != group:
        return f"a step of {step} is scaled after it, but groups are of {group}"
    return ""


@dataclass(frozen=True)
class LowerToTile(ModulePass):
    """kernels → kernels: launches, and the kernels they launch at the module's end.

    Raises GqcError that names the layers: packed for another target, or not, or of other tiles.
    """

    name = "lower-to-tile"

    target: str

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        refuse_other_layouts(op, resolve(self.target))
        refuse_other_tiles(op)
        kernels: dict[str, tile.KernelOp] = {}
        pattern = LowerMatmul(self.target, kernels)
        PatternRewriteWalker(pattern, apply_recursively=False).rewrite_module(op)
        op.body.block.add_ops(kernels.values())
