"""The parts of a sweep, and keeping them on disk: each is saved whole or not at all."""

import hashlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sinklens.files import write_atomically
from sinklens.interventions.heads import Head, head_name

HeadSet = tuple[Head, ...]


@dataclass(frozen=True)
class Part:
    """Some head sets under one intervention on some sequences.

    Attributes:
        number: From 0, in the order of the whole sweep.
        intervention: Its label.
        sequences: Indices of sequences, all of one length.
        head_sets: Sets of heads, those that start in one layer next to each other.
        estimate: Whether the sets (single heads) are estimated by attribution instead of run.
        work: About how many forward passes of one sequence it takes.
    """

    number: int
    intervention: str
    sequences: tuple[int, ...]
    head_sets: tuple[HeadSet, ...]
    estimate: bool
    work: float

    def key(self, sweep: str) -> str:
        """What the part's numbers depend on, as a hash; ``sweep`` stands for everything that all parts share."""
        names = [",".join(map(head_name, heads)) for heads in self.head_sets]
        content = [sweep, self.intervention, self.sequences, names, self.estimate]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class PartStore:
    """Finished parts in a directory: ``00012-<hash of the part's key and bytes>.parquet``.

    A file is renamed into place when it is complete, and its name tells whether it still is what was written and
    belongs to this very part of this very sweep.

    Args:
        directory: Where they lie; made when the first part is saved.
        sweep: What all parts have in common, as a hash.
        warn: Receives a sentence about every damaged file.
    """

    def __init__(self, directory: Path, sweep: str, warn: Callable[[str], None] = warnings.warn) -> None:
        self.directory, self.sweep, self.warn = directory, sweep, warn

    def load(self, part: Part) -> pd.DataFrame | None:
        """The part's table, ``None`` when it was not finished; a damaged file is removed with a warning."""
        for path in sorted(self.directory.glob(f"{part.number:05d}-*.parquet")):
            try:
                content = path.read_bytes()
                if path.name == self._name(part, content):
                    return pd.read_parquet(io.BytesIO(content))
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                reason = "its contents are not what was saved"
            self.warn(f"Part {part.number} in {path} is damaged ({reason}) and is computed again.")
            path.unlink(missing_ok=True)
        return None

    def save(self, part: Part, table: pd.DataFrame) -> None:
        """Write the part.

        Raises:
            ResultError: The place cannot be written or is full; the parts before are untouched.
        """
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        write_atomically(self.directory / self._name(part, buffer.getvalue()), buffer.getvalue())

    def clean(self) -> None:
        """Delete what an interrupted writing left behind."""
        for path in self.directory.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _name(self, part: Part, content: bytes) -> str:
        digest = hashlib.sha256(part.key(self.sweep).encode() + content).hexdigest()
        return f"{part.number:05d}-{digest}.parquet"
