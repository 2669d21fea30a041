"""Sections of a report as data: which sentences, figures and tables stand together."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd

from sinklens.app.drawings import Drawing
from sinklens.app.page import figure, html_table, text
from sinklens.plots.style import head_label
from sinklens.results.result import Result

_SHOWN: Final = 50
_TOKENS: Final = ("token",)


@dataclass(frozen=True)
class Part:
    """One section of a report.

    Attributes:
        title: Its heading.
        says: Matches the beginning of each sentence of the verdict that it shows.
        note: How to read it.
        table: Table of the result, or its method that makes one.
        columns: Heading by column, in order; columns that the table lacks are left out. ``name`` is made of ``layer``
            and ``head`` where a table has no such column.
        by: Column whose largest magnitudes come first; the table's own order without.
        caption: What the rows are.
    """

    title: str
    says: str
    note: str = ""
    table: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    by: str = ""
    caption: str = ""

    @property
    def anchor(self) -> str:
        """Name of the section in the page."""
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")

    def write(self, result: Result, drawn: Mapping[str, Drawing]) -> str:
        """The section: heading, note, figures, table."""
        body = [f"<h2>{text(self.title)}</h2>"]
        body += [f"<p>{text(self.note)}</p>"] if self.note else []
        body += [figure(draw(result), f"{self.anchor}-{place}") for place, draw in enumerate(drawn.values())]
        body += [self._rows(result)] if self.table else []
        return "\n".join(body)

    def _rows(self, result: Result) -> str:
        rows = result.tables.get(self.table)
        rows = getattr(result, self.table)() if rows is None else rows
        if rows.empty:
            return f'<p class="na">Not measured: this run left the table {text(self.table)} empty.</p>'
        if self.by:
            rows = rows.loc[rows[self.by].abs().sort_values(ascending=False, kind="stable").index]
        if "name" in self.columns and "name" not in rows:
            rows = rows.assign(name=[head_label(*each) for each in rows[["layer", "head"]].itertuples(index=False)])
        return written(rows, self.columns, self.caption)


def written(rows: pd.DataFrame, columns: Mapping[str, str], caption: str = "") -> str:
    """The first rows of a table, and how many of how many they are."""
    words = [str(name) for name in rows if name not in _TOKENS and not pd.api.types.is_numeric_dtype(rows[name])]
    shown = rows.head(_SHOWN)
    count = f"{len(shown):,} of {len(rows):,} rows" if len(shown) < len(rows) else ""
    tokens = [name for name in _TOKENS if name in rows]
    told = ". ".join(filter(None, [caption, count]))
    return html_table(shown, columns, caption=told, words=words, tokens=tokens)


def section_of(sentence: str, parts: Sequence[Part]) -> str | None:
    """The section that shows what a sentence says."""
    return next((part.anchor for part in parts if re.match(part.says, sentence)), None)


def linked(sentence: str, parts: Sequence[Part], drawn: bool) -> str:
    """A sentence with a link to its section; the first one has the figures of the kind, if it has any."""
    anchor = section_of(sentence, parts)
    if anchor is None:
        return text(sentence)
    shown = "Figure" if drawn and anchor == parts[0].anchor else "Table"
    return f'{text(sentence)} <a class="see" href="#{anchor}">{shown}</a>'


def other_tables(result: Result, parts: Sequence[Part]) -> dict[str, Any]:
    """Tables that no part shows."""
    shown = {part.table for part in parts}
    return {name: table for name, table in result.tables.items() if name not in shown}
