"""The few largest hidden-state entries against the median, by layer."""

from typing import Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import layer_axis, light_grid, log_axis
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.marks import add_line
from sinklens.plots.style import (
    CATEGORICAL,
    MUTED,
    empty_figure,
    layer_name,
    new_figure,
    number,
    require_columns,
    token_label,
)
from sinklens.wording import several

_TITLE: Final = "Largest hidden-state entries and the median by layer"
_ORDINALS: Final = ("largest", "2nd", "3rd", "4th", "5th")
_SYMBOLS: Final = ("circle", "square", "diamond", "triangle-up", "x")


@draws(CENSUS, needs={"massive": ("sequence", "layer", "position", "channel")})
def top_magnitudes(massive: pd.DataFrame, *, k: int = 3) -> go.Figure:
    """Draw the k largest entries |h| of the hidden states and their median |h| after each layer, on a log axis.

    Ranks are taken in every sequence by itself and then averaged over sequences, as is the median. Lines that run
    orders of magnitude above the median from an early to a late layer are massive activations; where the first lines
    fall together they are entries of one channel at several tokens, or the other way round (see the hover).

    Args:
        massive: A census, or its massive activations: the top entries of every sequence and layer with `sequence`,
            `layer`, `position`, `token`, `channel`, `value` (signed) and `median`.
        k: Lines drawn, at most as many as the table has for a layer (a census keeps five).

    Raises:
        InputError: `k` below 1 or above 5, or a missing column.

    Source: after Sun et al. 2024 (arXiv 2402.17762), figures 2 and 3.
    """
    if not 1 <= k <= len(_ORDINALS):
        raise InputError(f"top_magnitudes draws 1 to {len(_ORDINALS)} lines, not {k}.")
    needed = ("sequence", "layer", "position", "token", "channel", "value", "median")
    require_columns(massive, needed, "top_magnitudes")
    table = massive.dropna(subset=["value"])
    if table.empty:
        return empty_figure(_TITLE, "Not applicable: no hidden state was recorded.")
    table = table.assign(size=table["value"].abs())
    rank = table.groupby(["sequence", "layer"])["size"].rank(method="first", ascending=False).astype(int) - 1
    table = table.assign(rank=rank)
    layers = sorted(int(layer) for layer in table["layer"].unique())
    n = table["sequence"].nunique()
    fig = new_figure(_TITLE, f"After each layer, mean over {several(n, 'sequence')}; log axis.", height=340)
    for i in range(k):
        rows = table[table["rank"] == i]
        if rows.empty:
            continue
        mean = rows.groupby("layer")["size"].mean().reindex(layers)
        text = [_where(rows[rows["layer"] == layer], layer) for layer in layers]
        hover, colour = f"%{{text}}<br>{_ORDINALS[i]} |h|: %{{y:.4g}}", CATEGORICAL[(1, 4, 3, 6, 5)[i]]
        add_line(fig, layers, mean, f"{_ORDINALS[i]} |h|", colour, symbol=_SYMBOLS[i], text=text, hover=hover)
    median = table.drop_duplicates(["sequence", "layer"]).groupby("layer")["median"].mean().reindex(layers)
    add_line(fig, layers, median, "median |h|", MUTED, dash="dash", hover="layer %{x}<br>median |h|: %{y:.4g}")
    fig.update_layout(
        xaxis=layer_axis(layers) | light_grid(),
        yaxis={"title": {"text": "|h|, one entry of the residual stream"}}
        | log_axis(np.concatenate([trace.y for trace in fig.data])),
    )
    return fig


def _where(rows: pd.DataFrame, layer: int) -> str:
    """Layer, and the most common place of this rank."""
    text = layer_name(layer)
    if rows.empty:
        return text
    places = rows.groupby(["position", "token", "channel"], sort=False).size()
    position, token, channel = places.index[int(places.argmax())]
    share = number(places.max() / len(rows), ".0%")
    return f"{text}<br>token {position} {token_label(str(token), 24)}, channel {channel} (in {share} of sequences)"
