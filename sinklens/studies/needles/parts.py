"""What a needle test has finished, so that an interrupted one goes on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd

from sinklens.results import RunFolder


class Parts:
    """Finished prompts of every variant, in memory and, with a folder, one part on disk for each pass.

    Args:
        folder: Where the test works; ``None`` keeps everything in memory.
    """

    def __init__(self, folder: RunFolder | None) -> None:
        self.folder = folder
        self._rows: list[pd.DataFrame] = []

    @contextmanager
    def open(self, plan: Mapping[str, Any], restart: bool, before: pd.DataFrame | None = None) -> Iterator[None]:
        """Take the folder for a test of this plan, and what it has finished of it.

        Args:
            plan: What distinguishes this test from others.
            restart: Throw away what is there.
            before: Rows of a finished test that this one adds to; its result stays until this one is complete.

        Raises:
            ResultError: The folder holds something else, another test, or another process works in it.
        """
        if self.folder is None:
            yield
            return
        self.folder.check()
        with self.folder.locked():
            self.folder.begin(plan, restart, adds=before is not None, same=alike)
            self.folder.note()
            self._rows = [] if before is None else [before]
            parts = [self.folder.load(name) for name in self.folder.names()]
            self._rows += [part.tables["rows"] for part in parts if part is not None]
            yield

    @property
    def done(self) -> set[tuple[str, int]]:
        """Variants and instances that are finished."""
        return {pair for rows in self._rows for pair in zip(rows["variant"], rows["instance"], strict=True)}

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep some instances of one variant."""
        frame = pd.DataFrame(rows)
        self._rows.append(frame)
        if self.folder is not None:
            self.folder.save(f"{rows[0]['variant_number']:03d}-{rows[0]['instance']:06d}", {"rows": frame})

    def table(self) -> pd.DataFrame:
        """Everything finished, each variant and instance once."""
        every = pd.concat(self._rows, ignore_index=True).drop_duplicates(["variant_number", "instance"])
        return every.sort_values(["variant_number", "instance"], ignore_index=True)


def alike(one: Any, other: Any) -> bool:
    """Whether two plans are the same, numbers up to rounding: mean outputs are computed anew when a test goes on.

    >>> alike({"a": [1.0, "x"]}, {"a": (1.0000001, "x")}), alike({"a": 1}, {"b": 1})
    (True, False)
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(alike(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-4)
    return bool(one == other)
