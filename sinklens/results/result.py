"""What most results are: a header and some tables, saved and loaded alike."""

from collections.abc import Collection
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd

from sinklens.errors import ResultError
from sinklens.results.tables import load_result, save_result


@dataclass(frozen=True)
class TableResult:
    """A header and tables by name; the base of results that hold nothing else.

    A subclass names its kind in its first line::

        class Sweep(TableResult, format="sinklens-sweep", newest=1, needs=("effects", "summary"), header=("spec",))

    Attributes:
        meta: Model, tokens, settings, definitions and warnings, as JSON.
        tables: By name.
    """

    meta: dict[str, Any] = field(repr=False)
    tables: dict[str, pd.DataFrame] = field(repr=False)

    _format: ClassVar[str]
    _newest: ClassVar[int]
    _needs: ClassVar[tuple[str, ...]]
    _header: ClassVar[frozenset[str]]

    def __init_subclass__(
        cls, *, format: str, newest: int, needs: Collection[str], header: Collection[str] = ()
    ) -> None:
        """Remember the kind.

        Args:
            format: Name of the kind, in the header of what is saved.
            newest: Newest format version that is read.
            needs: Tables without which it is damaged.
            header: Entries of ``meta`` without which it is damaged.
        """
        super().__init_subclass__()
        cls._format, cls._newest, cls._needs, cls._header = format, newest, tuple(needs), frozenset(header)

    def save(self, directory: str | Path) -> Path:
        """Write a directory of Parquet tables and a JSON header, complete or not at all.

        Raises:
            ResultError: The place cannot be written, or holds something else.
        """
        save_result(Path(directory), {"format": self._format, **self.meta}, self.tables, {})
        return Path(directory)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read a saved result of this kind.

        Raises:
            ResultError: No finished one there, one of another kind or of a newer format, or damaged files.
        """
        meta, tables, _ = load_result(Path(directory), kind=cls._format, newest=cls._newest)
        missing = [name for name in cls._needs if name not in tables] + sorted(cls._header - meta.keys())
        if missing:
            raise ResultError(f"{directory} is damaged: its header names no {', '.join(missing)}; make it again.")
        del meta["format"]
        return cls(meta, tables)

    @property
    def plot(self) -> Any:
        """Its figures: ``result.plot.<figure>()``, and ``dir(result.plot)`` lists them."""
        return import_module("sinklens.plots.draws").Drawings(self)  # by name: plots stand above
