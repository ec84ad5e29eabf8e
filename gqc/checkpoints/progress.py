"""A bar of how much of a source is written: bytes, their rate, the time left."""

from __future__ import annotations

from rich.progress import (
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gqc.checkpoints.source import Outlined, Source
from gqc.progress import bar_of


class Bar:
    """A context in which `advance` moves the bar by one parameter.

    In bytes that are read, of a source that knows them, else in parameters. `done`: how many of
    `names` are written before. `shown`: None is where standard error is a terminal.
    """

    def __init__(self, source: Source, names: list[str], done: int, shown: bool | None):
        columns: list[ProgressColumn] = [MofNCompleteColumn(), TimeRemainingColumn()]
        self.sizes = dict.fromkeys(names, 1)
        if isinstance(source, Outlined):
            self.sizes = {name: source.bytes_of(name) for name in names}
            columns = [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
        self.progress = bar_of(shown, *columns)
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
