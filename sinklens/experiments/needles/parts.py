"""What a needle test has finished, on disk, so that an interrupted one goes on."""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from sinklens.errors import ResultError
from sinklens.experiments.needles.result import FORMAT, TABLES
from sinklens.experiments.sweeps.folder import locked
from sinklens.files import write_atomically
from sinklens.tables import HEADER, check_writable, kind_of

PLAN, PARTS = "needle-plan.json", "parts"


class Parts:
    """The folder in which a test works: one Parquet file for each finished pass.

    Args:
        out: The result's folder; ``None`` keeps everything in memory.
    """

    def __init__(self, out: Path | None) -> None:
        self.out = out
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
        out = self.out
        if out is None:
            yield
            return
        check_folder(out)
        with locked(out, "needle test"):
            if restart:
                self._clear(out)
            there = _read(out / PLAN)
            if there is None or (before is not None and not alike(there, plan)):
                if before is None:
                    self._clear(out)
                else:
                    self.tidy()  # the finished result stays
                write_atomically(out / PLAN, (json.dumps(plan, indent=1) + "\n").encode())
            elif not alike(there, plan):
                different = [name for name in plan if not alike(there.get(name), plan[name])]
                raise ResultError(
                    f"{out} holds an unfinished needle test with another {' and '.join(different) or 'plan'}; name "
                    "another directory, or start anew there with --restart (restart=True)."
                )
            self._rows = [] if before is None else [before]
            self._rows += [pd.read_parquet(path) for path in sorted((out / PARTS).glob("part-*.parquet"))]
            yield

    @property
    def done(self) -> set[tuple[str, int]]:
        """Variants and instances that are finished."""
        return {pair for rows in self._rows for pair in zip(rows["variant"], rows["instance"], strict=True)}

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep some instances of one variant."""
        frame = pd.DataFrame(rows)
        self._rows.append(frame)
        if self.out is not None:
            buffer = io.BytesIO()
            frame.to_parquet(buffer, index=False)
            number = f"{rows[0]['variant_number']:03d}-{rows[0]['instance']:06d}"
            write_atomically(self.out / PARTS / f"part-{number}.parquet", buffer.getvalue())

    def table(self) -> pd.DataFrame:
        """Everything finished, each variant and instance once."""
        every = pd.concat(self._rows, ignore_index=True).drop_duplicates(["variant_number", "instance"])
        return every.sort_values(["variant_number", "instance"], ignore_index=True)

    def tidy(self) -> None:
        """Remove the parts and the plan of a finished test."""
        if self.out is not None:
            parts = self.out / PARTS
            for path in [*parts.glob("part-*.parquet"), *parts.glob(".*.tmp"), self.out / PLAN]:
                path.unlink(missing_ok=True)
            if parts.is_dir() and not any(parts.iterdir()):
                parts.rmdir()

    def _clear(self, out: Path) -> None:
        """Remove an older result and parts of it; other files are kept."""
        for name in TABLES:
            (out / f"{name}.parquet").unlink(missing_ok=True)
        self.tidy()
        (out / HEADER).unlink(missing_ok=True)


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


def check_folder(out: Path) -> None:
    """Find out before a long run whether a needle test can work in ``out``.

    Raises:
        ResultError: It is a file, cannot be written, or holds something that is no needle test.
    """
    begun = (out / PLAN).is_file() or (out.is_dir() and kind_of(out) is None and not _foreign(out))
    if not begun:
        check_writable(out, FORMAT)


def _foreign(out: Path) -> bool:
    """Whether a folder without a plan holds more than an interruption before the plan can leave."""
    return any(not entry.name.endswith((".lock", ".tmp")) for entry in out.iterdir())


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ResultError(f"{path} is damaged ({error}); start anew with --restart (restart=True).") from error
    return found
