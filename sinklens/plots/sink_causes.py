"""What makes each head prefer its sink: shares of the margin by residual channel and by writer."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import named_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_bars, add_marks
from sinklens.plots.style import (
    BELOW,
    CATEGORICAL,
    INK,
    MUTED,
    empty_figure,
    escaped,
    float32,
    new_figure,
    require_columns,
)

_TITLE: Final = "What makes heads look at their sink"
NAMED: Final = 4


@draws(
    "sinklens-sink-causes",
    needs={
        "heads": ("layer", "head"),
        "channels": ("layer", "head", "side", "channel"),
        "components": ("layer", "head", "side", "component"),
    },
    whole={_TITLE: {}},
)
def sink_causes(heads: pd.DataFrame, channels: pd.DataFrame, components: pd.DataFrame) -> go.Figure:
    """Draw, for each head, the shares of its keys' channels and of their writers in the margin of its sink.

    Two bars a head: above by residual channel, below by who wrote to the residual stream; each adds up to the margin
    (the mark). Channels and writers with the largest shares over all heads have colours, the others are one grey part.

    Args:
        heads: A :class:`~sinklens.studies.sink_causes.result.SinkCauses`, or its `heads`.
        channels: Its `channels`.
        components: Its `components`.

    Raises:
        InputError: A missing column.
    """
    require_columns(heads, ("layer", "head", "name", "margin"), "sink_causes")
    if heads.empty:
        return empty_figure(_TITLE, "Not applicable: no head attends to the key.")
    order = [*zip(heads["layer"], heads["head"], strict=True)]
    note = (
        "Mean logits by which the head prefers the key, split on the side of the keys. Upper bar: residual channels, "
        "lower bar: who wrote them."
    )
    fig = new_figure(_TITLE, note, height=60 + 44 * len(order))
    for table, what, shift, colours in (
        (channels, "channel", -0.2, CATEGORICAL[:NAMED]),
        (components, "component", 0.2, CATEGORICAL[NAMED:]),
    ):
        keys = table[table["side"] == "key"]
        wide = keys.pivot(index=["layer", "head"], columns=what, values="share").reindex(order).fillna(0.0)
        largest = wide.abs().sum().sort_values(ascending=False, kind="stable").index[:NAMED]
        parts = {_name(what, part): (wide[part], colour) for part, colour in zip(largest, colours, strict=False)}
        parts[f"other {what}s"] = (wide.drop(columns=largest).sum(axis=1), "#c4cad2")
        for name, (shares, colour) in parts.items():
            y = [place + shift for place in range(len(order))]
            look = {"width": 0.36, "orientation": "h", "text": [f"{head}: {escaped(name)}" for head in heads["name"]]}
            add_bars(fig, float32(shares), y, escaped(name), colour, hover="%{text}<br>%{x:+.2f} logits", **look)
    marker = {"symbol": "line-ns", "size": 34, "line": {"width": 2, "color": INK}}
    add_marks(fig, float32(heads["margin"]), [*range(len(order))], "margin", marker, hover="margin %{x:+.2f} logits")
    fig.add_vline(x=0, line={"color": MUTED, "width": 1})
    rows = named_axis([str(name) for name in heads["name"]], down=True)
    fig.update_layout(xaxis=value_axis("share of the margin, logits"), yaxis=rows, barmode="relative", legend=BELOW)
    fig.update_layout(margin={"b": 110}, height=fig.layout.height + 54)
    return fig


def _name(what: str, part: object) -> str:
    if what == "channel":
        return "biases" if part == -1 else f"channel {part}"
    return "biases" if part == "bias" else str(part)
