"""Recall of facts by layer: what each adds to the right answer, and how likely the answer is after it."""

from typing import Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import layer_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_bars, add_line, add_marks, error_bars
from sinklens.plots.style import BELOW, CATEGORICAL, MUTED, empty_figure, float32, new_figure, require_columns

_TITLE: Final = "Recall of facts, layer by layer"


@draws("sinklens-factual-recall", needs={"layers": ("layer",)}, whole={_TITLE: {}})
def factual_recall(layers: pd.DataFrame) -> go.Figure:
    """Draw what each layer adds to the right answer over others, and the answer's probability after each layer.

    Above: bars of a layer's attention and of its rest (the MLP), the mark is their sum with its 95 % interval over
    facts: below 0 a layer holds the right answer down. Below: log-probability of the answer if the network ended there.

    Args:
        layers: A :class:`~sinklens.studies.factual_recall.result.FactualRecall`, or its `layers`.

    Raises:
        InputError: A missing column.
    """
    require_columns(layers, ("layer", "total", "low", "high", "attention", "rest", "lens"), "factual_recall")
    if layers.empty:
        return empty_figure(_TITLE, "Not applicable: there are no layers.")
    rows = layers.sort_values("layer")
    fig = new_figure(
        _TITLE, "Logits with the final norm frozen, at the last token; mean over the judged facts.", height=460
    )
    for name, column, colour in (
        ("attention", "attention", CATEGORICAL[0]),
        ("the rest (MLP)", "rest", CATEGORICAL[1]),
    ):
        add_bars(fig, rows["layer"], float32(rows[column]), name, colour, hover=f"layer %{{x}}, {name}: %{{y:+.3f}}")
    ends = error_bars(rows["total"], rows["low"], rows["high"], width=3, thickness=1.3)
    marks = {"symbol": "diamond", "size": 7, "color": "#000000"}
    add_marks(fig, rows["layer"], float32(rows["total"]), "layer", marks, hover="layer %{x}: %{y:+.3f}", error_y=ends)
    add_line(
        fig, rows["layer"], rows["lens"], "answer's log-probability", CATEGORICAL[2], hover="layer %{x}: %{y:.2f}",
        symbol="circle", yaxis="y2", showlegend=False,
    )  # fmt: skip
    fig.add_hline(y=0, line={"color": MUTED, "width": 1})
    numbers = np.asarray(rows["layer"], dtype=int).tolist()
    fig.update_layout(
        xaxis=layer_axis(numbers) | {"anchor": "y2", "range": [numbers[0] - 0.7, numbers[-1] + 0.7]},
        yaxis=value_axis("logits over other answers", domain=[0.42, 1]),
        yaxis2=value_axis("log-probability", domain=[0, 0.34]),
        barmode="relative",
        legend=BELOW,
        margin={"b": 100},
        height=fig.layout.height + 44,
    )
    return fig
