"""What figures are made of: cells, lines, bands, error bars and words in the house's look."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.style import MISSING, MUTED, float32


def add_cells(fig: go.Figure, z: Any, text: Any, **options: Any) -> None:
    """Add a heatmap of cells with gaps between them, row 0 where the axis says; a NaN cell is grey.

    Args:
        fig: Figure.
        z: ``[row column]``.
        text: Of every cell, Plotly's HTML; shown by the hover unless the options say otherwise.
        **options: Of the trace: colours, axes, other places than 0, 1, 2, ...
    """
    rows, columns = np.shape(z)
    look = {"x": np.arange(columns), "y": np.arange(rows), "text": text, "hovertemplate": "%{text}<extra></extra>"}
    look |= {"hoverongaps": False, "xgap": 1, "ygap": 1}
    fig.add_trace(go.Heatmap(z=float32(z), **look | options))
    axes = [options.get(f"{name}axis", name).replace(name, f"{name}axis") for name in "xy"]
    fig.update_layout({axis: {"showgrid": False} for axis in axes}, plot_bgcolor=MISSING)


def add_white(fig: go.Figure, x: str, y: str) -> None:
    """Make the background of a panel beside cells white again: grey stands for missing cells alone."""
    corners = {"x0": 0, "x1": 1, "y0": 0, "y1": 1, "xref": f"{x} domain", "yref": f"{y} domain"}
    fig.add_shape(type="rect", fillcolor="white", line={"width": 0}, layer="below", **corners)


def add_line(
    fig: go.Figure,
    x: Any,
    y: Any,
    name: str,
    colour: str,
    *,
    hover: str = "",
    width: float = 2,
    dash: str = "solid",
    symbol: Any = None,
    size: float = 7,
    **options: Any,
) -> None:
    """Add a line; a NaN is a gap.

    Args:
        fig: Figure.
        x: Places along the axis.
        y: Heights.
        name: In the legend.
        colour: Of line and marks.
        hover: Template of the hover, which is silent without one.
        width: Pixels.
        dash: "solid", "dash", "dot", ...
        symbol: Mark on every point (or one a point); none is drawn without.
        size: Of the marks.
        **options: Of the trace.
    """
    look: dict[str, Any] = {"mode": "lines", "line": {"color": colour, "width": width, "dash": dash}}
    if symbol is not None:
        look |= {"mode": "lines+markers", "marker": {"symbol": symbol, "size": size}}
    fig.add_trace(go.Scatter(x=x, y=float32(y), name=name, **_said(hover), **look | options))


def add_marks(
    fig: go.Figure, x: Any, y: Any, name: str | None, marker: dict[str, Any], *, hover: str = "", **options: Any
) -> None:
    """Add marks with nothing between them.

    Args:
        fig: Figure.
        x: Places along the axis.
        y: Heights.
        name: In the legend.
        marker: Symbol, size, colour, ...
        hover: Template of the hover, which is silent without one.
        **options: Of the trace.
    """
    fig.add_trace(go.Scatter(x=x, y=y, name=name, mode="markers", marker=marker, **_said(hover), **options))


def add_bars(fig: go.Figure, x: Any, y: Any, name: str | None, colour: Any, *, hover: str, **options: Any) -> None:
    """Add bars, upright unless ``orientation="h"``; texts are for the hover alone.

    Args:
        fig: Figure.
        x: Places, or lengths.
        y: Lengths, or places.
        name: In the legend.
        colour: Of all, or one a bar.
        hover: Template of the hover.
        **options: Of the trace.
    """
    look = {"textposition": "none"} if "text" in options else {}
    fig.add_trace(go.Bar(x=x, y=y, name=name, marker={"color": colour}, **_said(hover), **look, **options))


def _said(hover: str) -> dict[str, str]:
    return {"hovertemplate": f"{hover}<extra></extra>"} if hover else {"hoverinfo": "skip"}


def add_band(
    fig: go.Figure, low: "pd.Series[Any]", high: "pd.Series[Any]", name: str, colour: str, **options: Any
) -> None:
    """Fill the space between two lines over the same places; it does not bridge a place where they are missing."""
    missing = low.isna()
    for _, run in low[~missing].groupby(missing.cumsum()[~missing]):
        for values, shown in (
            (high, {"showlegend": False}),
            (low, {"showlegend": False, "fill": "tonexty", **options}),
        ):
            fig.add_trace(
                go.Scatter(
                    x=run.index.to_numpy(dtype=int),
                    y=float32(values[run.index]),
                    name=name,
                    mode="lines",
                    line={"width": 0},
                    fillcolor=colour,
                    hoverinfo="skip",
                    **shown,
                )
            )


def add_null(fig: go.Figure, x: float, words: str, *, left: bool = False) -> None:
    """Mark by a dashed upright line what nothing would give, with words at its top, to its right or left."""
    fig.add_vline(x=x, line={"color": MUTED, "width": 1.5, "dash": "dash"})
    add_words(
        fig, f"{words} " if left else f" {words}", x, 1, xref="x", xanchor="right" if left else "left", yanchor="top",
        font={"size": 12, "color": MUTED},
    )  # fmt: skip


def add_words(fig: go.Figure, text: str, x: float, y: float, **options: Any) -> None:
    """Write Plotly's HTML at a place of the page (0 to 1), by default a panel's title that ends at `y`."""
    look = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom", "font": {"size": 13}}
    fig.add_annotation(text=text, x=x, y=y, showarrow=False, **look | options)


def room_above(fig: go.Figure, pixels: int = 22) -> None:
    """Make room between title and panels for words that end at a panel's top."""
    fig.update_layout(margin={"t": fig.layout.margin.t + pixels}, height=fig.layout.height + pixels)


def error_bars(value: Any, low: Any, high: Any, *, width: float, thickness: float) -> dict[str, Any]:
    """Return the error bars from `low` to `high` around values."""
    return {"array": float32(high - value), "arrayminus": float32(value - low), "width": width, "thickness": thickness}


def add_intervals(
    fig: go.Figure,
    table: pd.DataFrame,
    column: str,
    y: Any,
    text: Any,
    *,
    name: str,
    colour: str,
    symbol: str = "circle",
    **options: Any,
) -> None:
    """Add a mark a row with the interval from its `low` to its `high`; a row without one has the mark alone.

    Args:
        fig: Figure.
        table: Holds the column, `low` and `high`.
        column: What is drawn along x.
        y: Place of each row.
        text: Hover of each row, Plotly's HTML.
        name: In the legend.
        colour: Of mark and interval.
        symbol: Of the mark.
        **options: Of the trace.
    """
    value, low, high = (table[each].to_numpy(dtype=float) for each in (column, "low", "high"))
    bars = error_bars(value, low, high, width=4, thickness=1.6)
    marker = {"size": 9, "color": colour, "symbol": symbol}
    places = np.asarray(y, dtype=np.float32)
    add_marks(fig, float32(value), places, name, marker, hover="%{text}", error_x=bars, text=text, **options)
