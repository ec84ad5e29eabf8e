"""Progress bars on standard error."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


def bar_of(shown: bool | None, *columns: ProgressColumn) -> Progress:
    """A bar, with what stands after it; None shows it where standard error is a terminal."""
    console = Console(stderr=True)
    shown = console.is_terminal if shown is None else shown
    text = TextColumn("{task.description}", markup=False)
    after = columns or (MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(text, BarColumn(), *after, console=console, transient=True, disable=not shown)
