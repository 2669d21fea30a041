"""Numeric axes for tokens and layers.

A Plotly axis fed with strings is a category axis and merges equal labels: a heatmap over "the", "the", "."
loses a column (plotly.py issue 4215). Tokens repeat all the time, so positions are always numbers here and
tokens tick text.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sinklens.plots.style import GRID, MISSING, MONO, SEQUENTIAL, colorbar, float32, token_label


def thinned(count: int, limit: int) -> list[int]:
    """Return at most `limit` evenly spaced indices of `range(count)`, the first always among them.

    >>> thinned(10, 4)
    [0, 3, 6, 9]
    """
    return list(range(0, count, max(1, math.ceil(count / limit))))


def add_token_axes(
    fig: go.Figure,
    *,
    x: Sequence[str] | None = None,
    y: Sequence[str] | None = None,
    x_title: str = "",
    y_title: str = "",
    x_hover: Sequence[str] | None = None,
    y_hover: Sequence[str] | None = None,
    limit: int = 64,
) -> None:
    """Label positions 0, 1, 2, ... of the x and / or y axis with tokens; `y` runs downwards.

    The traces' own axis carries a label for *every* position and is not drawn: a hover template's `%{x}`
    reads it, so each cell can name its token without one string per cell. A second axis on top, tied to the
    first, draws at most `limit` of the labels.

    Args:
        fig: Figure whose traces lie on `x` / `y` with integer positions.
        x: Tokens (raw strings) along x.
        y: Tokens along y, first at the top.
        x_title: Axis title.
        y_title: Axis title.
        x_hover: Already escaped hover text for each x; by default position and token.
        y_hover: Likewise for y.
        limit: Most tick labels drawn along an axis.
    """
    for name, labels, hover, title in (("x", x, x_hover, x_title), ("y", y, y_hover, y_title)):
        if labels is None:
            continue
        count = len(labels)
        span = [-0.5, count - 0.5] if name == "x" else [count - 0.5, -0.5]
        if hover is None:
            hover = [f"{i} {token_label(text, 24)}" for i, text in enumerate(labels)]
        shown = thinned(count, limit)
        fig.update_layout(
            {
                f"{name}axis": {
                    "tickmode": "array",
                    "tickvals": list(range(count)),
                    "ticktext": list(hover),
                    "showticklabels": False,
                    "ticks": "",
                    "showgrid": False,
                    "range": span,
                },
                f"{name}axis2": {
                    "overlaying": name,
                    "matches": name,
                    "side": "bottom" if name == "x" else "left",
                    "tickmode": "array",
                    "tickvals": shown,
                    "ticktext": [f"{token_label(labels[i])}" for i in shown],
                    "tickfont": {"family": MONO, "size": 12},
                    "tickangle": -90 if name == "x" else 0,
                    "showgrid": False,
                    "title": {"text": title, "font": {"size": 14}, "standoff": 8},
                },
            }
        )
    # An axis without a trace is not drawn; this one has no point.
    fig.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            xaxis="x2" if x is not None else "x",
            yaxis="y2" if y is not None else "y",
            showlegend=False,
            hoverinfo="skip",
        )
    )


def layer_axis(layers: Sequence[int], *, limit: int = 40) -> dict[str, Any]:
    """Return a numeric axis over layers: 0-based numbers, and "embed" for -1, the embedding's output."""
    shown = [layers[i] for i in thinned(len(layers), limit)]
    return {
        "tickmode": "array",
        "tickvals": shown,
        "ticktext": ["embed" if layer < 0 else str(layer) for layer in shown],
        "title": {"text": "layer (0-based)"},
    }


def head_axis(count: int, *, limit: int = 32, **more: Any) -> dict[str, Any]:
    """Return an axis over the heads of a layer, with about `limit` ticks."""
    ticks = {"dtick": max(1, -(-count // limit)), "tick0": 0}
    return {"title": {"text": "head (0-based)"}, "range": [-0.5, count - 0.5], **ticks, **more}


def layer_rows(count: int, *, limit: int = 40, **more: Any) -> dict[str, Any]:
    """Return the axis of a grid with one row a layer, layer 0 at the top."""
    return layer_axis(range(count), limit=limit) | {"range": [count - 0.5, -0.5], **more}


def named_axis(names: Iterable[str], *, down: bool = False, **more: Any) -> dict[str, Any]:
    """Return a numeric axis whose positions 0, 1, 2, ... are named; `down` puts the first one at the top."""
    texts = list(names)
    span = [-0.5, len(texts) - 0.5]
    places = {"tickmode": "array", "tickvals": list(range(len(texts))), "ticktext": texts}
    return {**places, "range": span[::-1] if down else span, **more}


def value_axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis of numbers with a faint grid."""
    return {"title": {"text": title}, **light_grid(), **more}


def grid_background(fig: go.Figure) -> None:
    """Prepare a heatmap's plot area: grey where cells are missing, no grid lines over it."""
    fig.update_layout(plot_bgcolor=MISSING)
    fig.update_xaxes(showgrid=False)
    fig.update_yaxes(showgrid=False)


def log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Return tick values and plain labels for a log scale between two positive values.

    Decades when three or more fit, otherwise ever finer series (1-3, 1-2-5, ...), so that at least three
    values can be read. Plotly's own log axes switch to small unlabelled digits instead.

    >>> log_ticks(1.0, 1000.0)
    ([1.0, 10.0, 100.0, 1000.0], ['1', '10', '100', '1,000'])
    """
    lo, hi = math.log10(low), math.log10(high)
    decades = range(math.floor(lo) - 1, math.ceil(hi) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10)), tuple(np.arange(1, 10, 0.2).tolist())):
        values = [float(f"{s * 10.0**d:.6g}") for d in decades for s in steps]
        values = [v for v in values if lo - 1e-9 <= math.log10(v) <= hi + 1e-9]
        if len(values) >= 3:
            break
    # At most nine labels fit beside a colour bar.
    values = [values[i] for i in thinned(len(values), 9)]
    return values, [f"{v:,.6g}" for v in values]


def log_axis(values: Any) -> dict[str, Any]:
    """Return a log axis over the positive ones of `values`, a little room at both ends."""
    positive = np.asarray(values, dtype=float)
    positive = positive[np.isfinite(positive) & (positive > 0)]
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (0.1, 10.0)
    room = 0.06 * math.log10(high / low) if high > low else 0.3
    span = [math.log10(low) - room, math.log10(high) + room]
    tickvals, ticktext = log_ticks(10 ** span[0], 10 ** span[1])
    return {"type": "log", "range": span, "tickvals": tickvals, "ticktext": ticktext, **light_grid()}


def log_colorbar(title: str, low: float, high: float) -> dict[str, Any]:
    """Return the colour bar of a trace that colours log10 of values between `low` and `high`."""
    tickvals, ticktext = log_ticks(low, high)
    return colorbar(title, tickvals=[math.log10(v) for v in tickvals], ticktext=ticktext)


def weight_colours(values: Any, floor: float | None = None) -> tuple[Any, str, dict[str, Any]]:
    """Return what a map of attention weights colours, its hover's template of the weight, and the trace's options.

    Args:
        values: Weights, NaN where the mask hides the key.
        floor: Lower end of log10 colours, which smaller weights take; linear colours from 0 without.
    """
    raw = float32(values)
    if floor is None:
        return (
            raw,
            "%{z:.4f}",
            {"zmin": 0, "zmax": 1, "colorscale": SEQUENTIAL, "colorbar": colorbar("attention weight")},
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        z = float32(np.where(np.isnan(raw), np.nan, np.maximum(np.log10(raw), np.log10(floor))))
    bar = log_colorbar("attention weight (log)", floor, 1.0)
    bar["ticktext"][0] = f"≤ {bar['ticktext'][0]}"
    options = {"zmin": float(np.log10(floor)), "zmax": 0, "colorscale": SEQUENTIAL, "colorbar": bar}
    return z, "%{customdata:.4f}", options | {"customdata": raw}


def light_grid() -> dict[str, Any]:
    """Return axis settings for line plots: a faint grid."""
    return {"showgrid": True, "gridcolor": GRID}
