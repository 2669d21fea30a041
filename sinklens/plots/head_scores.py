"""Layer x head grids of several scores side by side, all on one scale."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from sinklens.detectors.head_scores import HeadScores
from sinklens.errors import InputError
from sinklens.plots.axes import head_axis, layer_rows
from sinklens.plots.draws import draws
from sinklens.plots.head_grid import HeadGrid
from sinklens.plots.marks import add_cells, add_words
from sinklens.plots.style import SEQUENTIAL, colorbar, empty_figure, escaped, new_figure, number
from sinklens.wording import several

TITLE: Final = "Scores of heads"
PANELS_IN_A_ROW: Final = 3
GAP: Final = 0.07
CLEARANCE: Final = 64
"""Pixels between two rows of panels, for a title and the ticks."""

BEYOND: Final = 1 + 1e-6
"""A share does not exceed this."""

_EVIDENCE: Final = (
    ("_null", "uniform attention would score"),
    ("_sd", "standard deviation over sequences"),
)


@draws(
    "sinklens-needles",
    "sinklens-streaming-gates",
    needs={"heads": ()},
    settings={"n_layers": "model.n_layers"},
    whole={TITLE: {}},
)
def head_scores(
    scores: HeadScores, *, columns: Sequence[str] | None = None, n_layers: int | None = None, title: str = TITLE
) -> go.Figure:
    """Draw one layer x head grid per score, layer 0 at the top, with one colour scale from 0 to 1.

    A score that is a share keeps its value. One that reaches beyond 1 (tokens, nats) is divided by its largest value,
    and the title of its panel says by what. Values below 0 have the lowest colour; the subtitle counts them. The hover
    always has the value itself, with its null and spread where the table has them. Cells without a value (not
    applicable) and layers without attention are grey.

    Args:
        scores: Any head scores, or a needle result (its retrieval scores).
        columns: Scores to draw, in this order; default: all of them.
        n_layers: Layers of the model, so that trailing layers without attention keep their (grey) row.
        title: Title of the figure.

    Raises:
        InputError: No score to draw, or one that the table does not have.
    """
    chosen = list(scores.scores if columns is None else columns)
    unknown = [name for name in chosen if name not in scores.metrics]
    if unknown or not chosen:
        have = ", ".join(scores.scores) or "none"
        raise InputError(f"head_scores can draw {have}, not {', '.join(unknown) or '(nothing)'}.")
    frame = scores.frame
    if frame.empty or frame[chosen].isna().all(axis=None):
        return empty_figure(title, f"Not applicable: no head of this model has a value for {', '.join(chosen)}.")
    grid = HeadGrid(frame, n_layers)
    high = -(-len(chosen) // PANELS_IN_A_ROW)
    wide = -(-len(chosen) // high)  # four stand two by two
    panel = min(620, max(130, 20 * grid.rows))
    height = high * panel + (high - 1) * CLEARANCE
    grids = [grid.fill(frame[name]) for name in chosen]
    fig = new_figure(title, _notes(grid, grids), height=height)
    fig.update_layout(
        coloraxis={"cmin": 0, "cmax": 1, "colorscale": SEQUENTIAL, "colorbar": colorbar("score (share)")},
        margin={"t": fig.layout.margin.t + 26},
        height=fig.layout.height + 26,
    )
    for index, (name, values) in enumerate(zip(chosen, grids, strict=True)):
        row, column = divmod(index, wide)
        x, y = _domain(column, wide, GAP), _domain(row, high, CLEARANCE / height)
        axis = "" if index == 0 else str(index + 1)
        largest = float(np.nanmax(values)) if not np.isnan(values).all() else 0.0
        scale = largest if largest > BEYOND else 1.0
        texts = grid.texts(lambda record, head, name=name: _hover(record, head, name))  # type: ignore[misc]
        add_cells(fig, values / scale, texts, coloraxis="coloraxis", xaxis=f"x{axis}", yaxis=f"y{axis}", name=name)
        down = layer_rows(grid.rows, limit=20, domain=[max(0.0, 1 - y[1]), min(1.0, 1 - y[0])], anchor=f"x{axis}")
        across = head_axis(grid.columns, limit=10, domain=list(x), anchor=f"y{axis}")
        # only the outer panels have titles
        fig.update_layout(
            {
                f"xaxis{axis}": across | ({} if index + wide >= len(chosen) else {"title": {"text": ""}}),
                f"yaxis{axis}": down | ({} if column == 0 else {"title": {"text": ""}}),
            }
        )
        shown = escaped(name.replace("_", " ")) + ("" if scale == 1 else f" (1 = {number(scale)})")
        add_words(fig, shown, (x[0] + x[1]) / 2, 1 - y[0], xanchor="center")
    return fig


def _domain(index: int, count: int, gap: float) -> tuple[float, float]:
    size = (1 - gap * (count - 1)) / count
    start = index * (size + gap)
    return start, start + size


def _notes(grid: HeadGrid, grids: Sequence["np.ndarray[Any, Any]"]) -> str:
    notes = ["One colour scale for all panels."]
    if any((values > BEYOND).any() for values in grids):
        notes.append("A score beyond 1 is divided by its largest value, which stands above the panel.")
    notes += grid.grey(*grids)
    below = sum(int((values < 0).sum()) for values in grids)
    if below:
        notes.append(f"Colours are clipped: {several(below, 'value')} below 0; the hover has what they are.")
    return " ".join(notes)


def _hover(record: dict[Any, Any], head: str, name: str) -> str:
    lines = [head, f"{escaped(name.replace('_', ' '))}: {number(record[name], '.4g')}"]
    lines += [f"{what}: {number(record[name + end], '.3g')}" for end, what in _EVIDENCE if name + end in record]
    if "n_sequences" in record:
        lines.append(f"sequences: {number(record['n_sequences'], ',.0f')}")
    return "<br>".join(lines)
