"""Depth x length grid of how well a model finds a needle, before and after a change."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import named_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_cells, add_words
from sinklens.plots.style import (
    SEQUENTIAL,
    colorbar,
    empty_figure,
    escaped,
    new_figure,
    number,
    require_columns,
    signed_colours,
)
from sinklens.wording import are, several

Measure = Literal["exact", "correct", "log_prob"]

CLEAN: Final = "clean"
_GAP: Final = 0.1


@dataclass(frozen=True)
class _Look:
    title: str
    short: str
    unit: str
    note: str


_LOOKS: Final[dict[str, _Look]] = {
    "exact": _Look(
        "Needle in a haystack: exact match",
        "exact match",
        "share of prompts",
        "Exact match: every answer token is the most likely one. The hover has Wilson's 95 % interval.",
    ),
    "correct": _Look(
        "Needle in a haystack: answer tokens",
        "correct answer tokens",
        "share of tokens",
        "Correct: the answer's token is the most likely one, given the answer so far.",
    ),
    "log_prob": _Look(
        "Needle in a haystack: log-probability of the answer",
        "answer log-probability",
        "nats per token",
        "Mean log-probability of the answer's tokens, given the answer so far.",
    ),
}


@draws(
    "sinklens-needles",
    needs={"grid": ("variant", "length", "depth")},
    whole={"Needles by length and depth": {}},
)
def needle_grid(grid: pd.DataFrame, *, measure: Measure = "exact", variant: str | None = None) -> go.Figure:
    """Draw how well a model finds a needle hidden in a text, by the length of the text and the depth in it.

    With a changed model three grids stand side by side: before and after on one colour scale, and their difference on a
    scale centred on 0. Shares are coloured from 0 to 1. Cells that were not tested are grey. Colours are Viridis, which
    colour-blind readers can tell apart, and not the red and green of many published figures.

    Args:
        grid: A needle result, or its grid; needs `variant`, `length`, `depth`, `n` and the measure.
        measure: What to colour: `exact`, `correct` or `log_prob`.
        variant: The changed model to compare with "clean"; default: the only one there is; of several none. "clean"
            draws the unchanged model alone.

    Raises:
        InputError: An unknown measure or variant, a missing column, or several rows for a cell.
    """
    if measure not in _LOOKS:
        raise InputError(f"needle_grid can colour {', '.join(_LOOKS)}, not {measure!r}.")
    require_columns(grid, ("variant", "length", "depth", "n", measure), "needle_grid")
    look = _LOOKS[measure]
    if grid.empty or grid[measure].isna().all():
        return empty_figure(look.title, f"Not applicable: no prompt has a value for {measure}.")
    chosen = _choose(grid, variant)
    lengths, depths = sorted(grid["length"].unique()), sorted(grid["depth"].unique())
    before, after = (_Panel(grid[grid["variant"] == name], lengths, depths, measure) for name in (CLEAN, chosen))
    panels: list[tuple[str, Any, list[list[str]], dict[str, Any]]] = []
    alone = chosen == CLEAN
    levels = _levels([before.z, after.z], measure, look, 1.0 if alone else _widths(3)[1][1])
    if alone:
        panels = [("", before.z, before.texts(look), levels)]
    else:
        change = after.z - before.z
        top = float(np.nanmax(np.abs(change))) if np.isfinite(change).any() else 0.0
        bar = colorbar(f"change, {look.unit}")
        panels = [
            ("before", before.z, before.texts(look), levels | {"showscale": False}),
            (f"after: {_shortened(chosen)}", after.z, after.texts(look), levels),
            ("difference", change, after.changes(change, look), signed_colours(top) | {"colorbar": bar}),
        ]
    return _draw(panels, look, _notes(grid, before, chosen, look), lengths, depths)


def _choose(grid: pd.DataFrame, variant: str | None) -> str:
    names = list(dict.fromkeys(grid["variant"]))
    others = [name for name in names if name != CLEAN]
    if CLEAN not in names:
        raise InputError(f'The grid has no rows of the unchanged model ("{CLEAN}"); it has {", ".join(names)}.')
    if variant is None:
        return others[0] if len(others) == 1 else CLEAN
    if variant not in names:
        raise InputError(f"There is no variant {variant!r} in this grid; there are {', '.join(names)}.")
    return variant


class _Panel:
    """Rows of one variant on the grid."""

    def __init__(self, rows: pd.DataFrame, lengths: list[int], depths: list[float], measure: str) -> None:
        self.measure, self.lengths, self.depths = measure, lengths, depths
        self.records: dict[tuple[int, int], dict[Any, Any]] = {}
        self.z = np.full((len(depths), len(lengths)), np.nan)
        for record in rows.to_dict("records"):
            place = depths.index(record["depth"]), lengths.index(record["length"])
            self.records[place] = record
            self.z[place] = record[measure]

    def texts(self, look: _Look) -> list[list[str]]:
        """Hover text of every cell."""
        return self._fill(lambda place, record: f"{look.short}: {_with_interval(record, self.measure)}")

    def changes(self, change: Any, look: _Look) -> list[list[str]]:
        """Hover text of the difference."""
        name = f"change of {look.short}"
        return self._fill(lambda place, record: f"{name}: {_change(record, self.measure, change[place])}")

    def _fill(self, line: Any) -> list[list[str]]:
        texts = [[""] * len(self.lengths) for _ in self.depths]
        for place, record in self.records.items():
            where = f"<b>{record['length']:,} tokens, depth {record['depth']:.0%}</b>"
            texts[place[0]][place[1]] = f"{where}<br>{line(place, record)}<br>prompts: {record['n']:,}"
        return texts


def _with_interval(record: dict[Any, Any], name: str) -> str:
    value, low, high = (record.get(key, np.nan) for key in (name, f"{name}_low", f"{name}_high"))
    return number(value) if pd.isna(low) else f"{number(value)} [{number(low)}, {number(high)}]"


def _change(record: dict[Any, Any], measure: str, value: float) -> str:
    return _with_interval(record | {f"delta_{measure}": value}, f"delta_{measure}")


def _levels(values: list[Any], measure: str, look: _Look, right: float) -> dict[str, Any]:
    """Colours shared by before and after, with their bar at the right end of the later panel."""
    if measure == "log_prob":
        every = np.concatenate([each[np.isfinite(each)] for each in values])
        low, high = float(every.min()), float(every.max())
        bounds = {"zmin": low, "zmax": high if high > low else low + 1}
    else:
        bounds = {"zmin": 0.0, "zmax": 1.0}
    bar = colorbar(look.unit)
    if right < 1:
        bar |= {"x": right + 0.005, "xanchor": "left", "thickness": 10}
    return {**bounds, "colorscale": SEQUENTIAL, "colorbar": bar}


def _notes(grid: pd.DataFrame, before: _Panel, chosen: str, look: _Look) -> str:
    counts = grid[grid["variant"].isin([CLEAN, chosen])]["n"]
    few, many = int(counts.min()), int(counts.max())
    notes = [look.note, f"Prompts per cell: {few:,}." if few == many else f"Prompts per cell: {few:,} to {many:,}."]
    missing = int(np.isnan(before.z).sum())
    if missing:
        notes.append(f"Grey cells ({missing}): not tested.")
    left_out = {*grid["variant"]} - {CLEAN, chosen}
    if left_out:
        notes.append(f"{several(len(left_out), 'changed model')} {are(len(left_out))} not drawn; variant= names one.")
    return " ".join(notes)


def _widths(count: int) -> list[tuple[float, float]]:
    """Domains of panels side by side; the gap after the second holds a colour bar."""
    if count == 1:
        return [(0.0, 1.0)]
    gaps = [0.0, 0.03, _GAP]
    width = (1 - sum(gaps)) / count
    found, start = [], 0.0
    for gap in gaps:
        start += gap
        found.append((start, start + width))
        start += width
    return found


def _draw(panels: Any, look: _Look, notes: str, lengths: list[int], depths: list[float]) -> go.Figure:
    named = any(name for name, *_ in panels)
    fig = new_figure(look.title, notes, height=max(200, 40 * len(depths)) + 24 * named)
    lengths_said, depths_said = [f"{length:,}" for length in lengths], [f"{depth:.0%}" for depth in depths]
    for index, ((name, z, texts, options), domain) in enumerate(zip(panels, _widths(len(panels)), strict=True)):
        suffix = "" if index == 0 else str(index + 1)
        add_cells(fig, z, texts, xaxis=f"x{suffix}", yaxis=f"y{suffix}", **options)
        down = {"domain": [0, 0.93] if named else [0, 1], "anchor": f"x{suffix}", "showticklabels": index == 0}
        title = {"title": {"text": "depth of the needle" if index == 0 else ""}}
        across = {"domain": domain, "anchor": f"y{suffix}", "title": {"text": "prompt length (tokens)"}}
        fig.update_layout(
            {
                f"xaxis{suffix}": named_axis(lengths_said) | across,
                f"yaxis{suffix}": named_axis(depths_said, down=True) | down | title,
            }
        )
        if name:
            add_words(fig, escaped(name), sum(domain) / 2, 0.94, xanchor="center")
    return fig


def _shortened(name: str, limit: int = 44) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
