"""Residual norm of the first token against the others, by layer."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import layer_axis, light_grid, log_axis
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.marks import add_line
from sinklens.plots.style import ABOVE, CATEGORICAL, empty_figure, layer_name, new_figure, number, require_columns

_TITLE: Final = "Residual norm of position 0 against the other tokens"


@draws(CENSUS, needs={"layers": ("layer",)}, whole={"Residual norm of position 0 by layer": {}})
def residual_peaks(layers: pd.DataFrame) -> go.Figure:
    """Draw how long the first token's hidden state is after each layer, beside the other tokens', on a log axis.

    The gap between the lines is the residual peak (their ratio is in the hover). Layer -1 is the embedding's
    output.

    Args:
        layers: A census, or one row per layer with `layer`, `resid_norm_first`, `resid_norm_others`; `resid_ratio` and
            `resid_growth` (growth of the norm at position 0 over this layer) show in the hover when present.
    """
    require_columns(layers, ("layer", "resid_norm_first", "resid_norm_others"), "residual_peaks")
    table = layers.sort_values("layer").dropna(subset=["resid_norm_first", "resid_norm_others"], how="all")
    if table.empty:
        return empty_figure(_TITLE, "Not applicable: no residual norm was recorded.")
    numbers = [int(layer) for layer in table["layer"]]
    hover = []
    for record in table.to_dict("records"):
        text = layer_name(record["layer"])
        for key, name in (("resid_ratio", "ratio"), ("resid_growth", "growth at position 0")):
            if key in record:
                text += f"<br>{name}: {number(record[key])}"
        hover.append(text)
    fig = new_figure(_TITLE, "After each layer, mean over sequences; log axis.", height=320)
    for i, (column, name) in enumerate((("resid_norm_first", "position 0"), ("resid_norm_others", "other positions"))):
        said = f"%{{text}}<br>{name}: %{{y:.4g}}"
        mark = ("circle", "square")[i]
        add_line(fig, numbers, table[column], name, CATEGORICAL[1 - i], text=hover, hover=said, symbol=mark)
    fig.update_layout(
        xaxis=layer_axis(numbers) | light_grid(),
        yaxis={"title": {"text": "L2 norm of the residual stream"}}
        | log_axis(table[["resid_norm_first", "resid_norm_others"]]),
        legend=ABOVE,
    )
    return fig
