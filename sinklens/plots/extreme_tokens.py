"""Extreme tokens of a corpus: which channels of which layers, and which words."""

from typing import Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import layer_axis, named_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_bars, add_cells, add_white, add_words, room_above
from sinklens.plots.style import (
    CATEGORICAL,
    SEQUENTIAL,
    colorbar,
    empty_figure,
    float32,
    new_figure,
    require_columns,
    token_label,
)

_TITLE: Final = "Extreme tokens of a corpus"


@draws(
    "sinklens-extreme-tokens",
    needs={"tokens": ("sequence", "position"), "channels": ("layer", "channel")},
    whole={_TITLE: {}},
)
def extreme_tokens(tokens: pd.DataFrame, channels: pd.DataFrame, *, limit: int = 12) -> go.Figure:
    """Draw in how many tokens each channel is extreme, by layer, and which tokens these are.

    Left: a cell is a channel after a layer, coloured by the tokens that are extreme in it; grey where none is. Right:
    the most frequent of them; those at position 0 are counted together, whatever they say.

    Args:
        tokens: An :class:`~sinklens.studies.extreme_tokens.result.ExtremeTokens`, or its `tokens`.
        channels: Its `channels`.
        limit: Most channels and most words drawn.

    Raises:
        InputError: A missing column.
    """
    require_columns(tokens, ("position", "token"), "extreme_tokens")
    require_columns(channels, ("layer", "channel", "n_tokens"), "extreme_tokens")
    if tokens.empty:
        return empty_figure(_TITLE, "Not applicable: no token is extreme.")
    held = channels.groupby("channel")["n_tokens"].max().sort_values(ascending=False, kind="stable")
    names, layers = held.index[:limit], range(int(channels["layer"].min()), int(channels["layer"].max()) + 1)
    grid = channels.pivot(index="channel", columns="layer", values="n_tokens").reindex(index=names, columns=layers)
    note = f"{len(tokens):,} extreme tokens; {len(names)} of {len(held)} channels, those of the most tokens."
    fig = new_figure(_TITLE, note, height=max(220, 26 * limit))
    said = [
        [f"channel {channel}, after layer {layer}: {count:.0f} tokens" for layer, count in row.items()]
        for channel, row in grid.iterrows()
    ]
    add_cells(
        fig, grid.to_numpy(float), said, x=[*layers], colorscale=SEQUENTIAL, zmin=0,
        colorbar=colorbar("tokens", x=0.5, len=0.9),
    )  # fmt: skip
    first = int((tokens["position"] == 0).sum())
    words = tokens[tokens["position"] > 0]["token"].value_counts().sort_values(ascending=False, kind="stable")
    counts = ([("position 0", first)] if first else []) + [
        (token_label(str(word), 16), int(count)) for word, count in words.head(limit - bool(first)).items()
    ]
    look = {"xaxis": "x2", "yaxis": "y2", "orientation": "h", "showlegend": False}
    colours = [CATEGORICAL[0] if name == "position 0" else CATEGORICAL[1] for name, _ in counts]
    lengths = float32([count for _, count in counts])
    add_bars(fig, lengths, np.arange(len(counts)), None, colours, hover="%{x:,} tokens", **look)
    add_white(fig, "x2", "y2")
    add_words(fig, "<b>which tokens</b>", 0.7, 1)
    fig.update_layout(
        xaxis=layer_axis(layers) | {"domain": [0, 0.48]},
        yaxis=named_axis([f"channel {channel}" for channel in names], down=True),
        xaxis2=value_axis("tokens", domain=[0.7, 1], anchor="y2"),
        yaxis2=named_axis([name for name, _ in counts], down=True, anchor="x2"),
    )
    room_above(fig)
    return fig
