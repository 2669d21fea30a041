"""Residual norm of one token by layer, beside the other tokens of its sequence."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import layer_axis, light_grid, log_axis
from sinklens.plots.marks import add_band, add_line
from sinklens.plots.style import ABOVE, CATEGORICAL, MUTED, TEMPLATE, empty_figure, faint


def token_norm(norms: np.ndarray, position: int) -> go.Figure:
    """Draw the norm of the residual stream after each layer at one position, the others' median and range beside it.

    Args:
        norms: ``[pos 1+layer]``; first the embedding's output.
        position: The token.
    """
    title = "Residual norm by layer"
    if not 0 <= position < len(norms) or not np.isfinite(norms[position]).any() or not (norms > 0).any():
        return empty_figure(title, "Not applicable: no residual norm was recorded for this token.")
    layers = list(range(-1, norms.shape[1] - 1))
    own = norms[position]
    others = np.delete(norms, position, axis=0).T
    fig = go.Figure(layout={"template": TEMPLATE, "height": 300, "margin": {"l": 64, "r": 16, "t": 30, "b": 48}})
    if others.size:
        known = np.isfinite(others).any(1)  # not where activations are NaN
        found = np.full((3, len(others)), np.nan)
        found[:, known] = [of(others[known], 1) for of in (np.nanmin, np.nanmedian, np.nanmax)]
        low, middle, high = found
        name, grey = "range of the others", faint(MUTED, 0.16)
        add_band(fig, pd.Series(low, layers), pd.Series(high, layers), name, grey, showlegend=True)
        hover = "layer %{x}<br>median of the others %{y:.4g}"
        look: dict[str, Any] = {"width": 1.8, "symbol": "square", "size": 6}
        add_line(fig, layers, middle, "median of the others", MUTED, hover=hover, **look)
    hover = "layer %{x}<br>this token %{y:.4g}"
    add_line(fig, layers, own, "this token", CATEGORICAL[1], hover=hover, width=2.2, symbol="circle")
    fig.update_layout(
        xaxis=layer_axis(layers, limit=9) | light_grid(),
        yaxis={"title": {"text": "residual norm (L2)"}} | log_axis(np.concatenate([own, others.ravel()])),
        legend=ABOVE,
    )
    return fig
