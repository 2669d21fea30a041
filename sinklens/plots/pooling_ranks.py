"""Poolings of a layer as embeddings: whether a question finds its document, and how alike all texts are."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import layer_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_marks, error_bars
from sinklens.plots.style import BELOW, CATEGORICAL, MUTED, empty_figure, escaped, float32, new_figure, require_columns
from sinklens.studies.pooling.result import summarize

_TITLE: Final = "Poolings as embeddings"


@draws("sinklens-pooling", needs={"ranks": ("layer", "pooling", "draw", "pair")}, whole={_TITLE: {}})
def pooling_ranks(ranks: pd.DataFrame) -> go.Figure:
    """Draw, for each layer and pooling, how high a question ranks its document and how alike other documents are.

    Left: mean reciprocal rank with 95 % intervals over questions; the dashed line is chance. Right: mean cosine to the
    other documents; near 1 all texts are alike. Poolings stand beside each other within a layer.

    Args:
        ranks: A :class:`~sinklens.studies.pooling.result.PoolingComparison`, or its `ranks`.

    Raises:
        InputError: A missing column.
    """
    require_columns(ranks, ("layer", "pooling", "draw", "pair", "own", "others", "rank", "n"), "pooling_ranks")
    if ranks.empty:
        return empty_figure(_TITLE, "Not applicable: nothing was compared.")
    table = summarize(ranks)
    fig = new_figure(_TITLE, "Layers are placed evenly, in their order.", height=320)
    layers = sorted(int(layer) for layer in table["layer"].unique())
    names = [*dict.fromkeys(table["pooling"])]
    for place, name in enumerate(names):
        part = table[table["pooling"] == name].sort_values("layer")
        x = [layers.index(int(layer)) + 0.12 * (place - (len(names) - 1) / 2) for layer in part["layer"]]
        colour = CATEGORICAL[place % len(CATEGORICAL)]
        for panel, column in enumerate(("mrr", "others")):
            suffix = "2" if panel else ""
            ends = error_bars(part["mrr"], part["low"], part["high"], width=4, thickness=1.5)
            add_marks(
                fig,
                x,
                float32(part[column]),
                escaped(str(name)),
                {"color": colour, "size": 9},
                hover="%{text}<br>%{y:.3f}",
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
                legendgroup=str(place),
                showlegend=panel == 0,
                text=[f"layer {layer}, {escaped(str(name))}" for layer in part["layer"]],
                error_y=None if panel else ends,
            )
    fig.add_hline(y=float(table["chance"].iloc[0]), line={"color": MUTED, "width": 1.5, "dash": "dash"}, xref="x")
    axis = layer_axis(layers) | {"tickvals": [*range(len(layers))], "range": [-0.6, len(layers) - 0.4]}
    fig.update_layout(
        xaxis=axis | {"domain": [0, 0.46]},
        xaxis2=axis | {"domain": [0.56, 1], "anchor": "y2"},
        yaxis=value_axis("mean reciprocal rank", range=[0, 1.05]),
        yaxis2=value_axis("cosine to other documents", anchor="x2"),
        legend=BELOW,
        margin={"b": 110},
        height=fig.layout.height + 54,
    )
    return fig
