"""gqc: the command for people. `gqc targets` shows the table of machines."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

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
def targets() -> None:
    """List the targets that kernels can be compiled for."""
    from gqc.targets import TARGETS, resolve

    host = resolve("cpu").name
    table = Table("target", "kernels in", "activations and their instruction", "weight layout")
    for target in TARGETS.values():
        name = f"{target.name} (this machine)" if target.name == host else target.name
        units = ", ".join(f"{type_} {unit}" for type_, unit in target.units.items())
        table.add_row(name, target.backend, units, target.layout)
    Console().print(table)


def main() -> None:
    """Run the command on `sys.argv`."""
    app()


if __name__ == "__main__":
    main()
