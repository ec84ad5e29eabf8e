"""A folder on its way to being a checkpoint: shards, and what is known of those that are done.

Until the very end shards have names that nothing opens. Then the configs and the index are written,
then the shards get their names; a folder where one of them lacks its name does not open either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from gqc.checkpoints.files import INDEX, SINGLE, Tensors, option, read_json
from gqc.checkpoints.shards import Shard, unwritten, write_file
from gqc.errors import GqcError

STATE = "gqc-save.json"
LOCK = "gqc-save.lock"
OURS = re.compile(r"(shard-\d{5}\.(tmp|done)|model(-\d{5}-of-\d{5})?\.safetensors)(\.tmp)?")


@dataclass(frozen=True)
class Done:
    """A shard that is written: how many parameters it holds, and bytes of the file."""

    parameters: int
    bytes: int


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder, if need be, and keep other runs out of it meanwhile.

    Raises GqcError if one is at work there, or the folder cannot be written.
    """
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise GqcError(
            f"{folder}: another run is writing there: wait for it, or give a new folder"
        ) from error
    except OSError as error:
        raise unwritten(folder, error) from error
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


class Run:
    """Shards of one checkpoint, those that an interrupted run of the same has left among them.

    No other run may write to the folder meanwhile: see `alone`. Raises GqcError on a folder that
    holds anything else.
    """

    def __init__(self, folder: Path, fingerprint: str | None):
        self.folder, self.fingerprint = folder, fingerprint
        self.shards: list[Done] = []
        if not {path.name for path in folder.iterdir()} <= {f"{STATE}.tmp", LOCK}:
            self.resume()
        self.write_state()

    def resume(self) -> None:
        """Take over the shards of an interrupted run of the same, or clear away another's."""
        if not (self.folder / STATE).is_file():
            raise GqcError(f"{self.folder} is not empty: give a new folder")
        state = read_json(self.folder / STATE)
        if self.fingerprint is None or state.get("fingerprint") is None:
            for path in [*self.folder.iterdir()]:
                if OURS.fullmatch(path.name) or path.name == INDEX:
                    path.unlink()
            return
        if state["fingerprint"] != self.fingerprint:
            raise GqcError(
                f"{self.folder} holds an interrupted run of other inputs or options: run the same "
                "again to go on with it, or remove the folder"
            )
        entries = option(state, "shards", list)
        for i, entry in enumerate(entries):
            done = Done(option(entry, "parameters", int), option(entry, "bytes", int))
            path = self.path(i, len(entries))
            if not path.is_file() or path.stat().st_size != done.bytes:
                break
            self.shards.append(done)

    def place(self, i: int) -> Path:
        """Where a shard that is done waits for its name."""
        return self.folder / f"shard-{i + 1:05}.done"

    def path(self, i: int, count: int) -> Path:
        """Where a shard of so many is: waiting, unless a run was interrupted as it named them."""
        return self.place(i) if self.place(i).exists() else self.folder / name_of(i, count)

    @property
    def parameters(self) -> int:
        """How many parameters are written."""
        return sum(done.parameters for done in self.shards)

    def begin(self, header: int) -> Shard:
        """A shard with room for so many bytes of header."""
        return Shard(self.place(len(self.shards)).with_suffix(".tmp"), header)

    def end(self, shard: Shard, parameters: int) -> None:
        """Close a shard with so many parameters, and note that it is done."""
        path = self.place(len(self.shards))
        shard.close(path)
        self.shards.append(Done(parameters, path.stat().st_size))
        self.write_state()

    def write_state(self) -> None:
        state = {"fingerprint": self.fingerprint, "shards": [asdict(done) for done in self.shards]}
        write_file(self.folder / STATE, json.dumps(state).encode())

    def written(self) -> Tensors:
        """What the shards hold, read from their headers."""
        count = len(self.shards)
        return Tensors(self.path(i, count) for i in range(count))

    def complete(self, files: Mapping[str, bytes]) -> None:
        """Write the other files and the index, then name the shards."""
        count = len(self.shards)
        if count > 1:
            files = {**files, INDEX: self.index()}
        for name, content in files.items():
            write_file(self.folder / name, content)
        try:
            for i in range(count):
                self.path(i, count).replace(self.folder / name_of(i, count))
            (self.folder / STATE).unlink()
        except OSError as error:
            raise unwritten(self.folder, error) from error

    def index(self) -> bytes:
        """The index: which tensor is in which file."""
        count, tensors = len(self.shards), self.written()
        names = {self.path(i, count): name_of(i, count) for i in range(count)}
        places = {tensor: names[spec.file] for tensor, spec in tensors.specs.items()}
        total = sum(spec.bytes for spec in tensors.specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        return json.dumps(index, indent=2, sort_keys=True).encode()


def name_of(i: int, count: int) -> str:
    """The last name of one of so many shards."""
    return SINGLE if count == 1 else f"model-{i + 1:05}-of-{count:05}.safetensors"
