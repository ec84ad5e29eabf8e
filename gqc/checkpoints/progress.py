"""A bar of how much of a source is written: bytes, their rate, the time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gqc.checkpoints.source import Outlined, Source


class Bar:
    """A context in which `advance` moves the bar by one parameter.

    In bytes that are read, of a source that knows them, else in parameters. `done`: how many of
    `names` are written before. `shown`: None is where standard error is a terminal.
    """

    def __init__(self, source: Source, names: list[str], done: int, shown: bool | None):
        console = Console(stderr=True)
        columns = [MofNCompleteColumn(), TimeRemainingColumn()]
        self.sizes = dict.fromkeys(names, 1)
        if isinstance(source, Outlined):
            self.sizes = {name: source.bytes_of(name) for name in names}
            columns = [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
        shown = console.is_terminal if shown is None else shown
        text = TextColumn("{task.description}", markup=False)
        self.progress = Progress(
            text, BarColumn(), *columns, console=console, transient=True, disable=not shown
        )
        before = sum(self.sizes[name] for name in names[:done])
        self.task = self.progress.add_task(
            "writing", total=sum(self.sizes.values()), completed=before
        )

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.progress.stop()

    def advance(self, name: str) -> None:
        self.progress.update(self.task, advance=self.sizes[name], description=name)
