"""Layer x head grids of several scores side by side, all on one scale."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from sinklens.detectors.head_scores import HeadScores
from sinklens.errors import InputError
from sinklens.plots.axes import grid_background, layer_axis
from sinklens.plots.draws import draws
from sinklens.plots.style import (
    SEQUENTIAL,
    colorbar,
    empty_figure,
    escaped,
    float32,
    head_label,
    layer_list,
    new_figure,
    number,
)

TITLE: Final = "Scores of heads"
PANELS_IN_A_ROW: Final = 3
GAP: Final = 0.07
CLEARANCE: Final = 64
"""Pixels between two rows of panels, for a title and the ticks."""

_EVIDENCE: Final = (
    ("_null", "uniform attention would score"),
    ("_sd", "standard deviation over sequences"),
)


@draws("sinklens-needles", needs={"heads": ()}, settings={"n_layers": "model.n_layers"})
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
    layers, heads = frame["layer"].to_numpy(dtype=int), frame["head"].to_numpy(dtype=int)
    n_rows, n_columns = max(n_layers or 0, int(layers.max()) + 1), int(heads.max()) + 1
    wide = min(PANELS_IN_A_ROW, len(chosen))
    high = -(-len(chosen) // wide)
    panel = min(620, max(130, 20 * n_rows))
    height = high * panel + (high - 1) * CLEARANCE
    grids, below, scaled = [], 0, False
    for name in chosen:
        values = np.full((n_rows, n_columns), np.nan)
        values[layers, heads] = frame[name].to_numpy(dtype=float, na_value=np.nan)
        below += int((values < 0).sum())
        scaled = scaled or bool((values > 1 + 1e-6).any())
        grids.append(values)
    fig = new_figure(title, _notes(grids, layers, below, scaled), height=height)
    fig.update_layout(
        coloraxis={"cmin": 0, "cmax": 1, "colorscale": SEQUENTIAL, "colorbar": colorbar("score (share)")},
        margin={"t": fig.layout.margin.t + 26},
        height=fig.layout.height + 26,
    )
    records = frame.to_dict("records")
    for index, (name, values) in enumerate(zip(chosen, grids, strict=True)):
        row, column = divmod(index, wide)
        x, y = _domain(column, wide, GAP), _domain(row, high, CLEARANCE / height)
        axis = "" if index == 0 else str(index + 1)
        texts = np.full((n_rows, n_columns), "", dtype=object)
        for at, head, record in zip(layers, heads, records, strict=True):
            texts[at, head] = _hover(record, head_label(int(at), int(head)), name)
        largest = float(np.nanmax(values)) if not np.isnan(values).all() else 0.0
        scale = largest if largest > 1 + 1e-6 else 1.0
        fig.add_trace(
            go.Heatmap(
                z=float32(values / scale),
                x=np.arange(n_columns),
                y=np.arange(n_rows),
                text=texts.tolist(),
                hovertemplate="%{text}<extra></extra>",
                hoverongaps=False,
                xgap=1,
                ygap=1,
                coloraxis="coloraxis",
                xaxis=f"x{axis}",
                yaxis=f"y{axis}",
                name=name,
            )
        )
        _place(
            fig, axis, x, (1 - y[1], 1 - y[0]), n_rows, n_columns, first=column == 0, last=index + wide >= len(chosen)
        )
        shown = escaped(name.replace("_", " ")) + ("" if scale == 1 else f" (1 = {number(scale)})")
        fig.add_annotation(
            text=shown,
            x=(x[0] + x[1]) / 2,
            y=1 - y[0],
            xref="paper",
            yref="paper",
            xanchor="center",
            yanchor="bottom",
            showarrow=False,
            font={"size": 13},
        )
    grid_background(fig)
    return fig


def _domain(index: int, count: int, gap: float) -> tuple[float, float]:
    size = (1 - gap * (count - 1)) / count
    start = index * (size + gap)
    return start, start + size


def _place(
    fig: go.Figure,
    axis: str,
    x: tuple[float, float],
    y: tuple[float, float],
    n_rows: int,
    n_columns: int,
    *,
    first: bool,
    last: bool,
) -> None:
    """Lay a panel's axes; only the outer ones have titles."""
    rows = layer_axis(range(n_rows), limit=20)
    layout: dict[str, Any] = {
        f"xaxis{axis}": {
            "domain": list(x),
            "anchor": f"y{axis}",
            "range": [-0.5, n_columns - 0.5],
            "dtick": max(1, -(-n_columns // 10)),
            "tick0": 0,
            "title": {"text": "head (0-based)" if last else ""},
        },
        f"yaxis{axis}": rows
        | {
            "domain": [max(0.0, y[0]), min(1.0, y[1])],
            "anchor": f"x{axis}",
            "range": [n_rows - 0.5, -0.5],
            "title": rows["title"] if first else {"text": ""},
        },
    }
    fig.update_layout(layout)


def _notes(grids: Sequence["np.ndarray[Any, Any]"], layers: "np.ndarray[Any, Any]", below: int, scaled: bool) -> str:
    notes = ["One colour scale for all panels."]
    if scaled:
        notes.append("A score beyond 1 is divided by its largest value, which stands above the panel.")
    rows, columns = grids[0].shape
    without = np.flatnonzero(~np.isin(np.arange(rows), layers)).tolist()
    if without:
        notes.append(f"Grey rows: no attention in {layer_list(without)}, not applicable.")
    empty = sum(int(np.isnan(grid).sum()) for grid in grids) - columns * len(without) * len(grids)
    if empty:
        notes.append(f"Grey cells ({empty}): not applicable.")
    if below:
        notes.append(f"Colours are clipped: {below} value(s) below 0; the hover has them.")
    return " ".join(notes)


def _hover(record: dict[Any, Any], head: str, name: str) -> str:
    lines = [f"<b>{head}</b>", f"{escaped(name.replace('_', ' '))}: {number(record[name], '.4g')}"]
    lines += [f"{what}: {number(record[name + end], '.3g')}" for end, what in _EVIDENCE if name + end in record]
    if "n_sequences" in record:
        lines.append(f"sequences: {number(record['n_sequences'], ',.0f')}")
    return "<br>".join(lines)
