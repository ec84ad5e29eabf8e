"""gqc: the command for people: the table of machines, checkpoints quantized, files looked into."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from gqc.tools.inspect import Inspection

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def show_version(wanted: bool) -> None:
    from importlib.metadata import version

    if wanted:
        typer.echo(f"gqc {version('gqc')}")
        raise typer.Exit


@app.callback()
def gqc(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Say which gqc.")
    ] = False,
) -> None:
    """The compiler for grouped-quantized torch models."""


@app.command()
def targets(
    scheme: Annotated[
        str | None, typer.Argument(help="Say why, for one scheme: nvfp4, int4_g128, …")
    ] = None,
) -> None:
    """List the targets, and how each multiplies each format: native, emulated or refused."""
    from gqc.errors import GqcError

    try:
        for each in target_tables() if scheme is None else [reasons(scheme)]:
            Console().print(each)
    except GqcError as error:
        typer.echo(f"gqc: {error}", err=True)
        raise typer.Exit(2) from error


def target_tables() -> list[Table | str]:
    """The table of machines, and that of formats by target."""
    from gqc.legality import MATRIX, of_scheme
    from gqc.schemes import preset
    from gqc.targets import TARGETS, resolve

    host = resolve("cpu").name
    machines = Table("target", "kernels in", "activations and their instruction", "weight layout")
    for target in TARGETS.values():
        name = f"{target.name} (this machine)" if target.name == host else target.name
        units = ", ".join(f"{type_} {unit}" for type_, unit in target.units.items())
        machines.add_row(name, target.backend, units, target.layout)
    shown = [t for t in TARGETS.values() if t.backend != "cpu" or t.name == host]
    formats = Table("scheme", *(t.name.replace(host, "cpu") for t in shown))
    for name in MATRIX:
        formats.add_row(name, *(of_scheme(preset(name), t).kind for t in shown))
    return [
        machines,
        "native: the matrix instruction takes codes and scales as they are stored",
        "emulated: decoded exactly, then multiplied as floats (gqc targets SCHEME says why)",
        formats,
    ]


def reasons(scheme: str) -> Table:
    """What each target makes of one scheme, and why. Raises GqcError if there is no such scheme."""
    from gqc.legality import of_scheme
    from gqc.schemes import parse_scheme
    from gqc.targets import TARGETS

    table = Table("target", scheme, "why")
    for target in TARGETS.values():
        found = of_scheme(parse_scheme(scheme), target)
        table.add_row(target.name, found.kind, found.reason)
    return table


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="A checkpoint, or a kernel (.py or .mlir), or a dump's folder."),
    ],
    target: Annotated[str | None, typer.Option(help="GPU; by default the kernel's own.")] = None,
    triton_python: Annotated[
        str, typer.Option(help="A Python with another Triton to compile with.")
    ] = sys.executable,
    rows: Annotated[
        int | None, typer.Option(help="Rows M to predict for; by default one tile.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a checkpoint holds; or compile kernels without their GPU and judge them.

    Every parameter of a checkpoint is read. The other options are for kernels; exit status 1 says
    that one misses a gate.
    """
    from gqc.errors import GqcError
    from gqc.tools.files import is_checkpoint
    from gqc.tools.inspect import inspect

    if is_checkpoint(path):
        inspect_file(path, as_json)
        return
    try:
        found = inspect(path, target, triton_python, rows)
    except GqcError as error:
        typer.echo(f"gqc: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(json.dumps([inspection.as_json() for inspection in found], indent=2))
    else:
        for inspection in found:
            show(inspection)
    raise typer.Exit(any(inspection.failed for inspection in found))


def inspect_file(path: Path, as_json: bool) -> None:
    """Print what a checkpoint holds."""
    from gqc.errors import GqcError
    from gqc.tools.files import inspect_checkpoint

    try:
        contents = inspect_checkpoint(path)
    except GqcError as error:
        typer.echo(f"gqc: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(json.dumps(contents.as_json(), indent=2))
    else:
        Console().print(contents)


def show_warning(message: Warning | str, *place: object) -> None:
    """Print a warning without its place in our code."""
    typer.echo(f"gqc: warning: {message}", err=True)


@app.command()
def quantize(
    path: Annotated[Path, typer.Argument(help="A dense checkpoint: a folder or a file.")],
    out: Annotated[Path, typer.Argument(help="A new folder, or that of an interrupted run.")],
    scheme: Annotated[
        list[str], typer.Option(help="A scheme (int4_g128_sym), or PATTERN=SCHEME; repeatable.")
    ],
    ignore: Annotated[
        list[str] | None, typer.Option(help="A pattern of layers to leave as they are; repeatable.")
    ] = None,
    lm_head: Annotated[bool, typer.Option("--lm-head", help="The output head too.")] = False,
    format: Annotated[str, typer.Option(help="gqc or compressed-tensors.")] = "gqc",
    max_shard: Annotated[str, typer.Option(help="Bytes of a file at most: 5GB, 500MB.")] = "5GB",
) -> None:
    """Quantize a checkpoint of any size, one weight in memory at a time.

    Layers and schemes are as of gqc.compile, without calibration. An interrupted run goes on where
    it was when called again, and ends in the same bytes.
    """
    from gqc.errors import GqcError
    from gqc.tools.quantize import plan, run

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            source = plan(path, scheme, ignore or (), lm_head, format)
            done = run(source, out, format, max_shard)
    except GqcError as error:
        typer.echo(f"gqc: {error}", err=True)
        raise typer.Exit(2) from error
    Console().print(done.plan)
    typer.echo(str(done))


def show(inspection: Inspection) -> None:
    """Print one kernel's figures, and a line a gate."""
    built, time = inspection.built, inspection.estimate
    print_line = Console(highlight=False, soft_wrap=True, markup=False).print
    counts = ", ".join(f"{n}× {name}" for name, n in built.matrix_instructions.items())
    print_line(f"{built.source.name} for {built.target}, Triton {built.triton}")
    print_line(f"  {counts or 'no matrix instruction'}")
    print_line(
        f"  {built.registers} registers, {built.spills} spilled, {built.shared} bytes of shared "
        f"memory, {built.tensor_memory} columns of tensor memory"
    )
    print_line(
        f"  {time.instructions_per_weight:.2f} instructions per weight, "
        f"{inspection.waits_per_matrix:.2f} waits per matrix instruction"
    )
    print_line(
        f"  at least {time.microseconds:.1f} µs for {time.rows} rows, bound by {time.bound}: "
        f"{time.share:.0%} of the roofline"
    )
    for verdict in inspection.verdicts:
        missed = "missed" if verdict.gate.required else "noted "
        fault = f": {verdict.fault}" if verdict.fault else ""
        print_line(f"  {missed if fault else 'passed'} {verdict.gate.name}{fault}")


def main() -> None:
    """Run the command on `sys.argv`."""
    app()


if __name__ == "__main__":
    main()
