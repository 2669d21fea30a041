"""What the sections read: a census, and the tables that the page lets its reader save."""

import base64
import gzip
from collections.abc import Mapping
from typing import Any, Final, Protocol

import pandas as pd

from sinklens.app.page import text
from sinklens.plots import AttentionMapLike

_MAX_ROWS: Final = 200_000
"""Rows of a table that go into the page; more would make the file slow to open and to send."""


class CensusLike(Protocol):
    """What a report is written from; a scan's `Census` offers it."""

    @property
    def meta(self) -> dict[str, Any]:
        """Model, tokens, metrics, settings, warnings and verdict."""

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables sinks, heads, eps_sweep, layers, tokens, massive, profile."""

    @property
    def maps(self) -> Mapping[str, AttentionMapLike]:
        """Attention maps by head name."""


class Downloads:
    """The tables embedded in the page, each once, as base64 of gzipped CSV (floats with six digits).

    Args:
        tables: Tables by name.
    """

    def __init__(self, tables: Mapping[str, pd.DataFrame]):
        self._whole = {name: len(table) for name, table in tables.items()}
        self._parts = {name: _fitting(table, name) for name, table in tables.items()}

    def button(self, name: str) -> str:
        """Write the button that saves a table, and a note when the page holds only part of it."""
        part, kept = self._parts[name]
        button = (
            f'<button type="button" class="csv" data-table="{text(name)}">Download {text(name)}.csv '
            f"<small>{len(part):,} rows</small></button>"
        )
        if not kept:
            return button
        return (
            f'{button}<span class="note">{kept}, of {self._whole[name]:,} rows; the whole table is in the '
            "saved census.</span>"
        )

    def buttons(self) -> str:
        """Write the buttons of all tables."""
        return "\n".join(self.button(name) for name in self._parts)

    def data(self) -> list[str]:
        """Write the elements that hold the tables."""
        elements = []
        for name, (part, _) in self._parts.items():
            csv = part.to_csv(index=False, float_format="%.6g", lineterminator="\n")
            packed = gzip.compress(csv.encode("utf-8", "backslashreplace"), compresslevel=9, mtime=0)
            encoded = base64.b64encode(packed).decode("ascii")
            elements.append(f'<script type="text/plain" id="table-{text(name)}">{encoded}</script>')
        return elements


def _fitting(table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, str]:
    """Cut a table to what a page can hold, and say how.

    Of `sinks`, every head's most important keys stay; of other tables the first rows.
    """
    if len(table) <= _MAX_ROWS:
        return table, ""
    if name != "sinks":
        return table.head(_MAX_ROWS), f"The first {_MAX_ROWS:,}"
    keys = max(1, _MAX_ROWS // len(table[["layer", "head"]].drop_duplicates()))
    ordered = table.sort_values("importance", ascending=False)
    best = ordered.groupby(["layer", "head"]).head(keys).sort_index()
    return best, f"The {keys:,} most important keys of every head"
