"""One mark a head on two axes: what the scatter plots of heads share."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import log_axis, value_axis
from sinklens.plots.marks import add_marks, add_null
from sinklens.plots.style import CATEGORICAL, MUTED, float32

_LOOKS: Final = ((True, "sink head", CATEGORICAL[1], "circle"), (False, "other head", CATEGORICAL[0], "diamond-open"))


def add_heads(
    fig: go.Figure,
    heads: pd.DataFrame,
    x: tuple[str, str, list[float]],
    y: tuple[str, str],
    hover: Callable[[dict[Any, Any]], str],
) -> None:
    """Draw sink heads as filled circles and others as open diamonds, over a log axis with a line at 1.

    Args:
        fig: Figure.
        heads: One row per mark: `is_sink` and the two columns.
        x: Column, title of the axis and its range.
        y: Column and title of the axis.
        hover: Text of a mark.
    """
    for sink, name, colour, symbol in _LOOKS:
        rows = heads[heads["is_sink"].astype(bool) == sink]
        if rows.empty:
            continue
        marker = {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.2, "color": colour}}
        text = [hover(record) for record in rows.to_dict("records")]
        named = f"{name} ({len(rows):,})"
        places = float32(rows[y[0]])
        add_marks(fig, float32(rows[x[0]]), places, named, marker, hover="%{text}", opacity=0.85, text=text)
    fig.add_hline(y=1, line={"color": MUTED, "width": 1.5, "dash": "dash"})
    heights = {"title": {"text": y[1]}} | log_axis([*heads[y[0]], 1.0])
    fig.update_layout(xaxis=value_axis(x[1], range=x[2]), yaxis=heights, showlegend=True)


def mark_null(
    fig: go.Figure, nulls: "pd.Series[float]", one: str, several: str, spec: str, *, left: bool = False
) -> None:
    """Mark the heads' null by an upright line, at its median and said so when heads differ; nothing without a null."""
    known = nulls.dropna()
    if len(known):
        null = float(known.median())
        same = bool(np.isclose(known, null, rtol=1e-3).all())
        add_null(fig, null, f"{one if same else several} {null:{spec}}", left=left)
