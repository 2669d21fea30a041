"""Sink share by layer, of one or several runs, beside what even attention would give."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import layer_axis, light_grid, value_axis
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.marks import add_band, add_line
from sinklens.plots.style import CATEGORICAL, INK, empty_figure, escaped, faint, float32, new_figure, require_columns

ShareValue = Literal["importance_first", "sink_rate_first"]

_TITLES: Final[dict[str, tuple[str, str]]] = {
    "importance_first": ("Attention on position 0 by layer", "share of attention mass"),
    "sink_rate_first": ("Sink rate at position 0 by layer", "sink rate (share of sequences)"),
}
_SYMBOLS: Final = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "hexagon")


@draws(CENSUS, needs={"heads": ("layer", "head")}, many=True)
def sink_share(
    runs: Mapping[str, pd.DataFrame] | pd.DataFrame, *, value: ShareValue = "importance_first", spread: bool = True
) -> go.Figure:
    """Draw how much attention the first token receives in every layer, mean over heads, one line a run.

    Every line has the band that holds the middle half of its layer's heads (spread between heads, not an uncertainty).
    The dashed lines are the causal-uniform null: what position 0 would receive if every query spread its attention
    evenly; it depends on the length of the texts and on the mask, and runs with the same null share a line. A sink
    rate has no such line: under even attention it is 0 as soon as the null lies below the threshold. Layers without
    attention are gaps in the lines, never 0.

    Args:
        runs: Censuses or their heads tables by name, or a single one: `layer`, `head`, the value and,
            for the attention, `null_first`.
        value: "importance_first", mean attention per query, or "sink_rate_first", share of sequences over the
            threshold.
        spread: Whether the bands are drawn.

    Raises:
        InputError: An unknown value or a missing column.

    Source: after Gu et al. 2025 (arXiv 2410.10781), with the null and the spread added.
    """
    if value not in _TITLES:
        raise InputError(f"sink_share can draw {', '.join(_TITLES)}, not {value!r}.")
    named = runs if isinstance(runs, Mapping) else {"": runs}
    needed = ("layer", "head", value, *(("null_first",) if value == "importance_first" else ()))
    for table in named.values():
        require_columns(table, needed, "sink_share")
    title, unit = _TITLES[value]
    drawn = {name: table for name, table in named.items() if table[value].notna().any()}
    if not drawn:
        return empty_figure(title, "Not applicable: no attention layer was measured.")
    notes = ["Line: mean over heads."]
    notes += ["Band: the middle half of the heads."] if spread else []
    left_out = [name for name in named if name not in drawn]
    if left_out:
        notes.append(f"Not applicable (no attention measured): {', '.join(left_out)}.")
    fig = new_figure(title, " ".join(notes), height=340)
    last = max(int(table["layer"].max()) for table in drawn.values())
    for i, (name, table) in enumerate(drawn.items()):
        colour = CATEGORICAL[i % len(CATEGORICAL)]
        by_layer = table.groupby("layer")[value]
        layers = range(int(table["layer"].max()) + 1)
        mean = by_layer.mean().reindex(layers)
        low, high = (by_layer.quantile(q).reindex(layers) for q in (0.25, 0.75))
        if spread:
            add_band(fig, low, high, "middle half of heads", faint(colour, 0.14))
        add_line(
            fig,
            [*layers],
            mean,
            escaped(name) or "mean over heads",
            colour,
            symbol=_SYMBOLS[i % len(_SYMBOLS)],
            customdata=np.stack([float32(low), float32(high), float32(by_layer.count().reindex(layers))], -1),
            hover=(f"{escaped(name)}<br>" if name else "")
            + "layer %{x}, heads: %{customdata[2]:.0f}<br>mean %{y:.4f}"
            + "<br>middle half %{customdata[0]:.4f} to %{customdata[1]:.4f}",
        )
    if value == "importance_first":
        _add_nulls(fig, drawn)
    fig.update_layout(
        xaxis=layer_axis(range(last + 1)) | light_grid() | {"range": [-0.3, last + 0.3]},
        yaxis=value_axis(unit, range=[-0.02, 1.02]),
        showlegend=True,
        legend={"traceorder": "normal"},  # a filled band would turn it round
    )
    return fig


def _add_nulls(fig: go.Figure, drawn: Mapping[str, pd.DataFrame]) -> None:
    """The distinct null lines; runs of the same lengths and masks share one."""
    shared: list[tuple[list[str], pd.Series[Any]]] = []
    for name, table in drawn.items():
        null = table.groupby("layer")["null_first"].mean().dropna()
        for place, (names, held) in enumerate(shared):
            if _agree(held, null):
                shared[place] = ([*names, name], held.combine_first(null))
                break
        else:
            shared.append(([name], null))
    for i, (names, null) in enumerate(shared):
        label = "causal-uniform null" if len(shared) == 1 else f"null, {', '.join(names)}"
        layers, hover = null.index.to_numpy(dtype=int), f"{escaped(label)}<br>layer %{{x}}: %{{y:.4f}}"
        # a single layer has no line
        look: dict[str, Any] = {"width": 1.6, "symbol": "line-ew-open" if len(null) == 1 else None, "size": 14}
        dash = ("dash", "dot", "dashdot", "longdash")[i % 4]
        add_line(fig, layers, null, escaped(label), INK, hover=hover, dash=dash, **look)


def _agree(one: "pd.Series[Any]", other: "pd.Series[Any]") -> bool:
    """Whether two nulls are the same line: equal in the layers that both have, or flat and equal."""
    both = one.index.intersection(other.index)
    if not len(both):
        both_ends = [float(end) for null in (one, other) for end in (null.min(), null.max())]
        return bool(np.allclose(both_ends, both_ends[0], atol=5e-4))
    return bool(np.allclose(one[both], other[both], atol=5e-4))
