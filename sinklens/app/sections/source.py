"""What a section is, and the tables that the page lets its reader save."""

import base64
import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pandas as pd

from sinklens.app.page import text

if TYPE_CHECKING:  # importing studies loads torch, which a report of a saved census does not need
    from sinklens.studies.census.result import Census

_MAX_ROWS: Final = 100_000
"""A longer table is cut: whole, it would make the page slow to open and to send (100,000 rows take 2 MB)."""

_CUT_ROWS: Final = 60_000
"""Rows left of a table that is cut; models with such tables fill the page with figures already."""


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


@dataclass(frozen=True)
class Section:
    """One section of the report.

    Attributes:
        anchor: Its id in the page.
        label: Its name in the navigation.
        title: Its heading.
        write: Writes its HTML below the heading.
        needs: Tables it cannot do without; a scan with fewer detectors has fewer tables.
        optional: Leave the section out where they are missing; the list of what was not measured names it.
        made_by: The call that measures it.
    """

    anchor: str
    label: str
    title: str
    write: "Callable[[Census, Downloads], str]"
    needs: tuple[str, ...] = ()
    optional: bool = False
    made_by: str = "sinklens.scan(model)"

    def shown(self, census: "Census") -> bool:
        """Whether the section stands in the report of this census."""
        return not self.optional or all(name in census.tables for name in self.needs)

    def html(self, census: "Census", downloads: Downloads) -> str:
        """Write heading and body, or that this was not measured."""
        heading = f"<h2>{text(self.title)}</h2>\n"
        if all(name in census.tables for name in self.needs):
            return heading + self.write(census, downloads)
        return f'{heading}<p class="na">{text(not_measured(census, self.made_by))}</p>'


def _fitting(table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, str]:
    """Cut a table to what a page can hold, and say how.

    Of `sinks`, every head's most important keys stay; of other tables the first rows.
    """
    if len(table) <= _MAX_ROWS:
        return table, ""
    if name != "sinks":
        return table.head(_CUT_ROWS), f"The first {_CUT_ROWS:,}"
    keys = max(1, _CUT_ROWS // len(table[["layer", "head"]].drop_duplicates()))
    ordered = table.sort_values("importance", ascending=False)
    best = ordered.groupby(["layer", "head"]).head(keys).sort_index()
    return best, f"The {keys:,} most important keys of every head"


def not_measured(census: "Census", made_by: str) -> str:
    """Say that this run did not look, and which call does: another thing than a model that does not have it."""
    chosen = ", ".join(str(name) for name in census.meta["settings"].get("detectors", ()))
    return f"Not measured: this scan ran only the detectors {chosen}. {made_by} measures it."
