"""Sections of a report as data: which sentences, figures and tables stand together."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd

from sinklens.app.drawings import Drawing
from sinklens.app.page import figure, html_table, text
from sinklens.errors import SinkLensError
from sinklens.plots.style import head_label
from sinklens.results.result import Result

_SHOWN: Final = 50
_TOKENS: Final = ("token",)
INTERVAL: Final[Mapping[str, str]] = {"low": "low", "high": "high"}
"""Headings of the ends of an interval."""
LOSS: Final[Mapping[str, str]] = {
    "delta_loss": "change of the loss, nats", "delta_loss_low": "low", "delta_loss_high": "high",
}  # fmt: skip
"""Headings of a change of the loss with its interval."""


@dataclass(frozen=True)
class Part:
    """One section of a report.

    Attributes:
        title: Its heading.
        says: Matches the beginning of each sentence of the verdict that it shows.
        note: How to read it.
        figures: Titles of the figures of the kind that it shows; the first part has those that no part names.
        table: Table of the result, or its method that makes one.
        columns: Heading by column, in order; columns that the table lacks are left out. ``name`` is made of ``layer``
            and ``head`` where a table has no such column.
        where: Values of columns that its rows have, others are left out.
        by: Column whose largest magnitudes come first; the table's own order without.
        caption: What the rows are.
        made_by: The call that measures its table, where a plain one does not.
    """

    title: str
    says: str
    note: str = ""
    figures: Sequence[str] = ()
    table: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, object] = field(default_factory=dict)
    by: str = ""
    caption: str = ""
    made_by: str = ""

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
        try:
            rows = self._table(result)
        except SinkLensError as error:
            return f'<p class="na">Not measured. {text(error)}</p>'
        if rows is None or (self.by and self.by not in rows):
            return f'<p class="na">Not measured in this run; {text(self.made_by or "a newer one")} has it.</p>'
        if rows.empty:
            return f'<p class="na">Not measured: this run left the table {text(self.table)} empty.</p>'
        for column, value in self.where.items():
            rows = rows[rows[column] == value]
        if self.by:
            rows = rows.loc[rows[self.by].abs().sort_values(ascending=False, kind="stable").index]
        if "name" in self.columns and "name" not in rows:
            rows = rows.assign(name=[head_label(*each) for each in rows[["layer", "head"]].itertuples(index=False)])
        return written(rows, self.columns, self.caption)

    def _table(self, result: Result) -> pd.DataFrame | None:
        """The table, or what the method or property of its name gives; None where the run has neither."""
        if self.table in result.tables:
            return result.tables[self.table]
        made: Any = getattr(result, self.table, None)
        made = made() if callable(made) else made
        found: pd.DataFrame | None = made.to_dataframe() if hasattr(made, "to_dataframe") else made
        return found


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


def drawn_in(parts: Sequence[Part], drawn: Mapping[str, Drawing]) -> dict[str, dict[str, Drawing]]:
    """The figures of each section by its anchor: those that it names, and in the first one those that none names."""
    named = {title for part in parts for title in part.figures}
    return {
        part.anchor: {
            title: draw for title, draw in drawn.items() if title in part.figures or (not place and title not in named)
        }
        for place, part in enumerate(parts)
    }


def linked(sentence: str, parts: Sequence[Part], drawn: Mapping[str, Mapping[str, Drawing]]) -> str:
    """A sentence with a link to its section, and what stands there first: figures (by anchor) or a table."""
    anchor = section_of(sentence, parts)
    if anchor is None:
        return text(sentence)
    shown = "Figure" if drawn[anchor] else "Table"
    return f'{text(sentence)} <a class="see" href="#{anchor}">{shown}</a>'


def other_tables(result: Result, parts: Sequence[Part]) -> dict[str, Any]:
    """Tables that no part shows."""
    shown = {part.table for part in parts}
    return {name: table for name, table in result.tables.items() if name not in shown}
