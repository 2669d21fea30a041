"""What every run leaves: a header, tables and arrays, saved, loaded, reported and opened alike, whatever the kind."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from sinklens.arguments import check_fields, checked
from sinklens.errors import InputError, ResultError
from sinklens.results.commit import finish
from sinklens.results.damage import blamed
from sinklens.results.header_file import read_header
from sinklens.results.markdown import markdown_table
from sinklens.results.provenance import model_words, token_words
from sinklens.results.tables import load_result, save_result

KINDS: dict[str, type["Result"]] = {}
"""Classes of results by ``format``; each registers itself when it is defined."""

REPORTS: dict[str, Callable[[Any, Path], Path]] = {}
"""Writers of reports by ``format``, which :mod:`sinklens.app` fills; ``""`` writes that of any other kind."""


@dataclass(frozen=True)
class Result:
    """A header, tables by name, and arrays by name; the base of every kind of result.

    A subclass names its kind in its first line::

        class Dynamics(Result, format="sinklens-dynamics", title="Dynamics of checkpoints", newest=1, needs=("steps",))

    Attributes:
        meta: The header as JSON: model, tokens, settings, definitions, warnings.
        tables: By name.
        arrays: By name; most kinds have none.
    """

    meta: dict[str, Any] = field(repr=False)
    tables: dict[str, pd.DataFrame] = field(repr=False)
    arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    _saved_in: ClassVar[Path | None] = None  # of one that was loaded, an attribute of its own
    format: ClassVar[str]
    """Name of the kind, in the header of what is saved."""
    newest: ClassVar[int]
    """Newest format version that is read, and the one that is written."""
    needs: ClassVar[tuple[str, ...]]
    """Tables without which it is damaged; the first one is what :meth:`to_dataframe` gives."""
    entries: ClassVar[frozenset[str]]
    """Entries of ``meta`` without which it is damaged."""
    title: ClassVar[str]
    """What such a result is called, over its report."""

    def __init_subclass__(
        cls, *, format: str, title: str, newest: int, needs: Collection[str], header: Collection[str] = ()
    ) -> None:
        """Register the kind; ``header`` are the entries of ``meta`` that it needs."""
        super().__init_subclass__()
        cls.format, cls.title, cls.newest = format, title, newest
        cls.needs, cls.entries = tuple(needs), frozenset(header)
        KINDS[format] = cls

    def __post_init__(self) -> None:
        """Say in the header which version of the format this is, unless it was loaded and says so."""
        check_fields(self)
        object.__setattr__(self, "meta", {"format_version": self.newest, **self.meta})

    @property
    def verdict(self) -> list[str]:
        """What was found, in sentences; the first is the headline. Empty for kinds that only measure."""
        return [str(sentence) for sentence in self.meta.get("verdict", ())]

    @property
    def model_name(self) -> str:
        """Name of the model it is about."""
        return str((self.meta.get("model") or {}).get("name", "an unnamed model"))

    def to_dataframe(self, name: str | None = None) -> pd.DataFrame:
        """A copy of a table, yours to change.

        Args:
            name: Which one; default: the kind's main table, the first that its class names.

        Raises:
            InputError: It has no such table.
        """
        name = self.needs[0] if name is None else name
        if name not in self.tables:
            raise InputError(f"There is no table {name!r} in this result; there are {', '.join(self.tables)}.")
        return self.tables[name].copy()

    def save(self, directory: str | Path) -> Path:
        """Write a directory of Parquet tables, arrays and a JSON header, complete or not at all.

        Raises:
            ResultError: The place cannot be written, or holds something else.
        """
        save_result(Path(directory), {"format": self.format, **self.meta}, self.tables, self.arrays)
        return Path(directory)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read a saved result of this kind.

        Raises:
            ResultError: No finished one there, one of another kind or of a newer format, or damaged files.
        """
        meta, tables, arrays = load_result(Path(directory), kind=cls.format, newest=cls.newest)
        with blamed(Path(directory)):
            missing = [name for name in cls.needs if name not in tables] + sorted(cls.entries - meta.keys())
            missing += [] if missing else [name for name in cls.needed_arrays(meta) if name not in arrays]
            if missing:
                raise ResultError(f"{directory} is damaged: its header names no {', '.join(missing)}; make it again.")
            del meta["format"]
            found = cls(meta, tables, arrays)
        object.__setattr__(found, "_saved_in", Path(directory))
        return found

    @classmethod
    def needed_arrays(cls, meta: Mapping[str, Any]) -> Collection[str]:
        """Arrays that a header speaks of; without them the result is damaged."""
        return ()

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file that opens offline: verdict, figures, tables, definitions, provenance.

        plotly.js is inlined once (about 5 MB), tables are inside as CSV, the page makes no request, everything that
        came from a model or a text is escaped, and the file appears under its name only when it is complete.

        Returns:
            The path written; missing folders are made.

        Raises:
            ResultError: The file cannot be written, or the result lacks a table.
        """
        import_module("sinklens.app")  # by name: the rooms above register their writers, nothing here knows them
        write = REPORTS.get(self.format, REPORTS[""])
        with blamed(self._saved_in):
            return write(self, Path(path))

    @property
    def plot(self) -> Any:
        """Its figures: ``result.plot.<figure>()``, and ``dir(result.plot)`` lists those that it can draw."""
        return import_module("sinklens.plots.draws").Drawings(self)  # by name: plots stand above

    def to_markdown(self) -> str:
        """Verdict, provenance, short tables, definitions and warnings as Markdown."""
        with blamed(self._saved_in):
            return self._to_markdown()

    def _to_markdown(self) -> str:
        lines = [f"# {self.title}: {self.model_name}", "", *(f"- {sentence}" for sentence in self.verdict), ""]
        model, tokens = self.meta.get("model"), self.meta.get("tokens")
        told = [f"Model: {model_words(model)}."] if model else []
        told += [f"Tokens: {token_words(tokens)}"] if tokens else []
        lines += [" ".join(told), ""] if told else []
        for title, table in self.short_tables().items():
            lines += [*([f"## {title}", ""] if title else []), markdown_table(table), ""]
        for name, metric in self.meta.get("metrics", {}).items():
            version = f" v{metric['version']}" if "version" in metric else ""
            source = f" ({metric['source']})" if metric.get("source") else ""
            lines.append(f"- `{name}`{version}: {metric['definition']}{source}")
        lines += [f"- Warning: {warning}" for warning in self.meta.get("warnings", ())]
        return "\n".join(lines) + "\n"

    def short_tables(self) -> dict[str, pd.DataFrame]:
        """What is worth reading of the tables, by title; of most kinds the first rows of the main one."""
        return {"": self.tables[self.needs[0]].head(10)}

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.verdict)
        return f"<b>{escape(self.title)}: {escape(self.model_name)}</b><ul>{items}</ul>"


@checked
def open_result(directory: str | Path) -> Result:
    """Open a saved result of any kind: what a scan, a sweep, a needle test or another run left.

    ::

        found = sinklens.open("runs/demo")
        print(found.verdict[0])

    Args:
        directory: Where it was saved.

    Returns:
        The class of its kind, such as :class:`~sinklens.Census`.

    Raises:
        ResultError: No finished result there, one of a kind that nobody knows, of a newer format, or damaged.
    """
    if not isinstance(directory, str | os.PathLike):
        raise ResultError(f"Expected the directory of a saved result, got {type(directory).__name__}.")
    return kind_class(Path(directory)).load(directory)


def kind_class(directory: Path) -> type[Result]:
    """The class of the result that lies in a directory.

    Raises:
        ResultError: No result there, or one of an unknown kind.
    """
    finish(directory)
    kind = read_header(directory).format
    found = known_kind(kind)
    if found is None:
        known = ", ".join(sorted({*_homes(), *KINDS}))
        raise ResultError(f"{directory} holds a {kind!r}, which this sinklens does not know; it knows {known}.")
    return found


def known_kind(format: str) -> type[Result] | None:
    """The class of a kind, which registers itself when its module is loaded; None for one that nobody knows."""
    homes = _homes()
    if format in homes:
        import_module(homes[format])
    return KINDS.get(format)


def _homes() -> Mapping[str, str]:
    found: Mapping[str, str] = import_module("sinklens.studies.kinds").HOMES  # by name: the kinds stand above
    return found
