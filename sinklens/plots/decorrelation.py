"""How far the other tokens' residual states point along position 0's, layer by layer."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import layer_axis, light_grid, value_axis
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.marks import add_line
from sinklens.plots.style import ABOVE, CATEGORICAL, MUTED, empty_figure, layer_name, new_figure, require_columns

_TITLE: Final = "Alignment of the other tokens with position 0"


@draws(CENSUS, needs={"decorrelation": ("layer",)})
def decorrelation(layers: pd.DataFrame) -> go.Figure:
    """Draw how far the other tokens' states point the way of the first token's after each layer (squared cosine).

    1: all tokens point along position 0; 0: all at right angles to it. The dashed line: random directions (the null).
    Layers that do not enter the decorrelation loss (embedding and last layer) have hollow marks. The mean signed cosine
    shows in the hover.

    Args:
        layers: A census, or its `decorrelation` table: layer, bos_cosine, bos_cosine_sq, null, in_loss.

    Raises:
        InputError: A missing column.

    Source: after Anand et al. 2025 (arXiv 2510.22603), null added.
    """
    require_columns(layers, ("layer", "bos_cosine", "bos_cosine_sq", "null", "in_loss"), "decorrelation")
    table = layers.sort_values("layer").dropna(subset=["bos_cosine_sq"])
    if table.empty:
        return empty_figure(_TITLE, "Not applicable: there is no token beside the first to compare with it.")
    numbers = [int(layer) for layer in table["layer"]]
    loss = float(table.loc[table["in_loss"].astype(bool), "bos_cosine_sq"].mean())
    note = "After each layer, mean over tokens."
    if loss == loss:
        note += f" Mean over the filled marks: {loss:.3f}."
    fig = new_figure(_TITLE, note, height=320)
    add_line(
        fig,
        numbers,
        table["bos_cosine_sq"],
        "squared cosine",
        CATEGORICAL[0],
        symbol=["circle" if inside else "circle-open" for inside in table["in_loss"]],
        size=8,
        text=[
            f"{layer_name(layer)}<br>mean cosine: {cosine:.3f}"
            for layer, cosine in zip(numbers, table["bos_cosine"], strict=True)
        ],
        hover="%{text}<br>squared: %{y:.3f}",
    )
    add_line(fig, numbers, table["null"], "null: random directions", MUTED, width=1.5, dash="dash")
    heights = value_axis("squared cosine with position 0", range=[0, 1.02])
    fig.update_layout(xaxis=layer_axis(numbers) | light_grid(), yaxis=heights, legend=ABOVE)
    return fig
