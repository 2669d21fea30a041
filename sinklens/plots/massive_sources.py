"""Who wrote each massive activation: shares of its value by writer, and the one weight within the largest."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import named_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_bars
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

_TITLE: Final = "Who wrote the massive activations"


@draws(
    "sinklens-massive-sources",
    needs={"sources": ("channel", "episode")},
    whole={_TITLE: {}},
)
def massive_sources(sources: pd.DataFrame) -> go.Figure:
    """Draw each massive activation's value by who wrote it: the named weight, the rest of its writer, all others.

    The parts add up to the value at its peak (the mark). Values are divided by the value, so that channels of 700 and
    of 23,000 stand side by side; the hover has the numbers.

    Args:
        sources: A :class:`~sinklens.studies.massive_sources.result.MassiveSources`, or its `sources`.

    Raises:
        InputError: A missing column.
    """
    columns = ("channel", "appears", "leaves_after", "value", "writer", "writer_share", "weight", "weight_share")
    require_columns(sources, columns, "massive_sources")
    if sources.empty:
        return empty_figure(_TITLE, "Not applicable: no channel is massive in half of the sequences.")
    count = len(sources)
    note = "Shares of the value at its peak. The weight is one entry of the matrix by which the MLP writes."
    fig = new_figure(_TITLE, note, height=80 + 44 * count)
    weight = sources["weight_share"].astype(float).fillna(0.0)
    parts = {
        "the named weight": (weight, CATEGORICAL[1], sources["weight"].fillna("no weight can be named")),
        "the rest of its writer": (sources["writer_share"] - weight, CATEGORICAL[0], sources["writer"]),
        "all other writers": (
            sources["value"] - sources["writer_share"],
            "#c4cad2",
            pd.Series("others", sources.index),
        ),
    }
    for name, (values, colour, what) in parts.items():
        text = [f"{escaped(str(each))}: {value:+.4g}" for each, value in zip(what, values, strict=True)]
        look = {"width": 0.6, "orientation": "h", "text": text}
        x, hover = float32(values / sources["value"]), "%{text}<br>%{x:.2f} of the value"
        add_bars(fig, x, [*range(count)], name, colour, hover=hover, **look)
    fig.add_vline(x=1, line={"color": INK, "width": 1.5})
    fig.add_vline(x=0, line={"color": MUTED, "width": 1})
    labels = [
        f"channel {row.channel}, layers {row.appears} to {row.leaves_after} ({row.value:+.3g})"
        for row in sources.itertuples()
    ]
    rows = named_axis(labels, down=True)
    fig.update_layout(xaxis=value_axis("share of the value"), yaxis=rows, barmode="relative", legend=BELOW)
    fig.update_layout(margin={"b": 110, "l": 250}, height=fig.layout.height + 54)
    return fig
