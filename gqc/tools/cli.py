"""gqc: the command for people. `gqc targets` shows the table of machines, `gqc inspect` kernels."""

from __future__ import annotations

import json
import sys
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
    path: Annotated[Path, typer.Argument(help="A kernel (.py or .mlir), or a dump's folder.")],
    target: Annotated[str | None, typer.Option(help="GPU; by default the kernel's own.")] = None,
    triton_python: Annotated[
        str, typer.Option(help="A Python with another Triton to compile with.")
    ] = sys.executable,
    rows: Annotated[
        int | None, typer.Option(help="Rows M to predict for; by default one tile.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compile kernels without their GPU and judge them: exit status 1 if one misses a gate."""
    from gqc.errors import GqcError
    from gqc.tools.inspect import inspect

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
