"""The largest hidden-state entries by layer, against the thresholds that make them "massive"."""

from typing import Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import layer_axis, light_grid, log_axis
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.marks import add_line, add_marks
from sinklens.plots.style import (
    CATEGORICAL,
    MUTED,
    empty_figure,
    float32,
    layer_name,
    new_figure,
    number,
    require_columns,
    token_label,
)

_TITLE: Final = "Largest and median hidden-state entry by layer"


@draws(CENSUS, needs={"layers": ("layer",)})
def massive_activations(layers: pd.DataFrame, *, absolute: float = 100.0, relative: float = 1000.0) -> go.Figure:
    """Draw the largest and the median entry of the hidden states after each layer, with two thresholds, on a log axis.

    Two criteria, reported separately because the first depends on the model's scale: |h| > `absolute`, and
    |h| > `relative` times the layer's median. Layers whose largest entry meets both, as Sun et al. 2024
    (arXiv 2402.17762) ask, are ringed.

    Args:
        layers: A census, or one row per layer with `layer`, `max_abs`, `median_abs`; `top_position`, `top_token` and
            `top_channel` show in the hover when present.
        absolute: Absolute threshold on |h|.
        relative: Threshold in medians.
    """
    require_columns(layers, ("layer", "max_abs", "median_abs"), "massive_activations")
    table = layers.sort_values("layer").dropna(subset=["max_abs"])
    if table.empty:
        return empty_figure(_TITLE, "Not applicable: no hidden state was recorded.")
    numbers = [int(layer) for layer in table["layer"]]
    top, median = table["max_abs"].to_numpy(dtype=float), table["median_abs"].to_numpy(dtype=float)
    hover = []
    for record in table.to_dict("records"):
        text = layer_name(record["layer"])
        if "top_token" in record:
            where = number(record.get("top_position"), ".0f")
            text += f"<br>token {where} {token_label(str(record['top_token']), 24)}"
        if "top_channel" in record:
            text += f"<br>channel {number(record['top_channel'], '.0f')}"
        hover.append(text)
    both = (top > absolute) & (top > relative * median)
    notes = (
        "After each layer, mean over sequences. "
        f"Over |h| = {absolute:g}: {int((top > absolute).sum())} of {len(top)} points. "
        f"Over {relative:g} x the layer's median: {int((top > relative * median).sum())}. "
        f"Over both, ringed: {int(both.sum())}."
    )
    fig = new_figure(_TITLE, notes, height=340)
    measured = {"symbol": "circle", "size": 6, "text": hover}
    lines = (
        ("largest |h|", top, CATEGORICAL[1], measured),
        ("median |h|", median, CATEGORICAL[0], measured),
        (f"{relative:g} x median", relative * median, CATEGORICAL[0], {"dash": "dash"}),
        (f"|h| = {absolute:g}", np.full_like(top, absolute), MUTED, {"dash": "dot"}),
    )
    for name, values, colour, look in lines:
        said = ("%{text}<br>" if "text" in look else "") + f"{name}: %{{y:.4g}}"
        add_line(fig, numbers, values, name, colour, hover=said, **look)
    marker = {"symbol": "circle-open", "size": 14, "color": "black", "line": {"width": 1.6}}
    x = np.asarray(numbers)[both]
    add_marks(fig, x, float32(top[both]), "over both thresholds", marker, showlegend=bool(both.any()))
    fig.update_layout(
        xaxis=layer_axis(numbers) | light_grid(),
        yaxis={"title": {"text": "|h|, one entry of the residual stream"}}
        | log_axis(np.concatenate([values for _, values, *_ in lines])),
    )
    return fig
