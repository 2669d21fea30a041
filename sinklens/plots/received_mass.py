"""Attention received by key position, beside the causal-uniform null."""

from collections.abc import Iterator
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import plotly.colors
import plotly.graph_objects as go

from sinklens.plots.axes import light_grid, log_axis, value_axis
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.marks import add_line
from sinklens.plots.style import (
    CATEGORICAL,
    MUTED,
    SEQUENTIAL,
    empty_figure,
    head_label,
    layer_list,
    new_figure,
    require_columns,
)

_TITLE: Final = "Attention received by key position"
_LEGEND_LAYERS: Final = 16


@draws(CENSUS, needs={"sinks": ("layer", "head", "position")}, settings={"min_queries": "settings.min_queries"})
def received_mass(
    sinks: pd.DataFrame,
    *,
    by: Literal["layer", "head"] = "layer",
    top: int = 8,
    min_queries: int = 10,
    log_x: bool = False,
    log_y: bool = True,
) -> go.Figure:
    """Draw how much attention each key position receives from a query that sees it (importance), by layer or head.

    One line per layer, the mean over its heads, or one line per head for the `top` heads whose strongest
    drawn key receives most. The dashed line is the causal-uniform null: what the key would receive if every
    query spread its attention evenly over the keys its mask leaves visible; layers with different masks have
    different null lines. Keys seen by fewer than `min_queries` queries are not drawn: their mean rests on a
    handful of late rows.

    Args:
        sinks: A census, or one row per layer, head and key position with `layer`, `head`, `position`, `importance`,
            `null`. The number of queries is read from `n_queries` when there is such a column and otherwise
            is the distance to the end of the longest sequence.
        by: One line per layer or per head.
        top: Number of heads drawn with `by="head"`.
        min_queries: Fewest queries a drawn key is seen by; default: the census's own number.
        log_x: Log axis for positions (position 0 is drawn where 1 would be, every position one to the right).
        log_y: Log axis for importance, on which the null can be read beside a sink.
    """
    require_columns(sinks, ("layer", "head", "position", "importance", "null"), "received_mass")
    table = sinks.dropna(subset=["importance"])
    if table.empty:
        return empty_figure(_TITLE, "Not applicable: no attention layer was measured.")
    last = int(table["position"].max()) + 1
    queries = table["n_queries"] if "n_queries" in table.columns else last - table["position"]
    table = table[queries >= min_queries]
    if table.empty:
        return empty_figure(_TITLE, f"Not applicable: no key is seen by at least {min_queries} queries.")

    drawn = int(table["position"].max())
    notes = [f"Keys seen by at least {min_queries} queries (positions 0 to {drawn:,}); later keys are not drawn."]
    lines = list(_layer_lines(table) if by == "layer" else _head_lines(table, top))
    nulls = _null_lines(table)
    heights = np.concatenate([*(line.to_numpy() for _, line, _ in lines), *(null.to_numpy() for _, null in nulls)])
    if log_y and (heights <= 0).any():
        notes.append("A key that receives exactly 0 has no place on the log axis.")
    layers_or_heads = "one line per layer, mean over heads"
    if by == "head":
        layers_or_heads = f"the {len(lines)} heads with the strongest key"
    fig = new_figure(f"{_TITLE}: {layers_or_heads}", " ".join(notes), height=400)
    shift, key = (1, "%{customdata}") if log_x else (0, "%{x}")
    legend = len(lines) <= _LEGEND_LAYERS
    for name, line, colour in lines:
        x = line.index.to_numpy()
        hover = f"{name}<br>key {key}<br>importance %{{y:.4f}}"
        look: dict[str, Any] = {
            "width": 1.6,
            "symbol": "circle" if drawn < 80 else None,
            "size": 4,
            "showlegend": legend,
        }
        add_line(fig, x + shift, line, name, colour, hover=hover, customdata=x if log_x else None, **look)
    for i, (name, null) in enumerate(nulls):
        dash = ("dash", "dot", "dashdot", "longdash")[i % 4]
        add_line(fig, null.index.to_numpy() + shift, null, name, "black", hover=f"{name}<br>%{{y:.4f}}", dash=dash)
    if not legend:
        _layer_colorbar(fig, sorted(int(layer) for layer in table["layer"].unique()))
    # Room on the left, so that position 0 does not lie on the axis.
    span = [-0.02 * max(drawn, 1), 1.02 * max(drawn, 1)]
    xaxis = value_axis("key position (0-based, tokens)", range=span)
    if log_x:
        span = [-0.02 * np.log10(drawn + 2), 1.02 * np.log10(drawn + 2)]
        marks = [0, *(2**i for i in range(int(np.log2(drawn or 1)) + 1))]
        xaxis |= {
            "type": "log",
            "range": span,
            "tickvals": [m + 1 for m in marks],
            "ticktext": [f"{m:,}" for m in marks],
        }
    fig.update_layout(
        xaxis=xaxis,
        yaxis={"title": {"text": "importance (mean attention per query)"}}
        | (log_axis(heights) if log_y else light_grid()),
    )
    return fig


def _layer_lines(table: pd.DataFrame) -> Iterator[tuple[str, "pd.Series[float]", str]]:
    layers = sorted(int(layer) for layer in table["layer"].unique())
    # The last tenth of viridis is too pale a yellow for a line on white.
    places = np.linspace(0.0, 0.9, len(layers)) if len(layers) > 1 else np.zeros(1)
    colours = plotly.colors.sample_colorscale(SEQUENTIAL, places.tolist())
    means = table.groupby(["layer", "position"])["importance"].mean()
    for layer, colour in zip(layers, colours, strict=True):
        yield f"layer {layer}", means.loc[layer], colour


def _head_lines(table: pd.DataFrame, top: int) -> Iterator[tuple[str, "pd.Series[float]", str]]:
    strongest = table.groupby(["layer", "head"])["importance"].max().sort_values(ascending=False)
    by_head = table.set_index(["layer", "head", "position"])["importance"].sort_index()
    for i, (layer, head) in enumerate(strongest.index[:top]):
        yield head_label(int(layer), int(head)), by_head.loc[(layer, head)], CATEGORICAL[i % len(CATEGORICAL)]


def _null_lines(table: pd.DataFrame) -> list[tuple[str, "pd.Series[float]"]]:
    """Return the distinct null curves; layers with the same mask share one."""
    nulls = table.groupby(["layer", "position"])["null"].mean()
    groups: dict[bytes, tuple[list[int], pd.Series[float]]] = {}
    for layer in sorted(int(layer) for layer in table["layer"].unique()):
        curve = nulls.loc[layer].dropna()
        key = np.round(curve.to_numpy(dtype=float), 6).tobytes() + curve.index.to_numpy().tobytes()
        groups.setdefault(key, ([], curve))[0].append(layer)
    if len(groups) == 1:
        return [("causal-uniform null", next(iter(groups.values()))[1])]
    return [(f"null, {layer_list(layers)}", curve) for layers, curve in groups.values()]


def _layer_colorbar(fig: go.Figure, layers: list[int]) -> None:
    """Explain line colours by a colour bar when a legend would be longer than the figure."""
    scale = plotly.colors.sample_colorscale(SEQUENTIAL, np.linspace(0, 0.9, 16).tolist())
    fig.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            showlegend=False,
            hoverinfo="skip",
            marker={
                "color": [layers[0]],
                "cmin": layers[0],
                "cmax": layers[-1],
                "colorscale": scale,
                "showscale": True,
                "colorbar": {"title": {"text": "layer", "side": "right"}, "thickness": 14, "outlinewidth": 0},
            },
        )
    )
    fig.update_layout(legend={"x": 1, "y": 1, "xanchor": "right"}, legend_font_color=MUTED)
