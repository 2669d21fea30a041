"""Residual norm of one token by layer, beside the other tokens of its sequence."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import layer_axis, light_grid, log_axis
from sinklens.plots.marks import add_band, add_line
from sinklens.plots.style import ABOVE, CATEGORICAL, MUTED, TEMPLATE, empty_figure, faint


def token_norm(norms: pd.DataFrame, position: int, *, note: str = "") -> go.Figure:
    """Draw the norm of the residual stream after each layer at one position, the others' median and range beside it.

    Args:
        norms: ``layer``, ``position``, ``resid_norm``; layer -1 is the embedding's output.
        position: The token.
        note: What the numbers are, at the axis.
    """
    title = "Residual norm by layer"
    if norms.empty or not (norms["resid_norm"] > 0).any() or not (norms["position"] == position).any():
        return empty_figure(title, "Not applicable: no residual norm was recorded for this token.")
    grid = norms.pivot(index="layer", columns="position", values="resid_norm").sort_index()
    layers = [int(layer) for layer in grid.index]
    own = grid[position].to_numpy(float)
    others = grid.drop(columns=position).to_numpy(float)
    fig = go.Figure(layout={"template": TEMPLATE, "height": 300, "margin": {"l": 64, "r": 16, "t": 30, "b": 48}})
    if others.size:
        low, middle, high = np.nanmin(others, 1), np.nanmedian(others, 1), np.nanmax(others, 1)
        name, grey = "range of the others", faint(MUTED, 0.16)
        add_band(fig, pd.Series(low, layers), pd.Series(high, layers), name, grey, showlegend=True)
        hover = "layer %{x}<br>median of the others %{y:.4g}"
        look: dict[str, Any] = {"width": 1.8, "symbol": "square", "size": 6}
        add_line(fig, layers, middle, "median of the others", MUTED, hover=hover, **look)
    hover = "layer %{x}<br>this token %{y:.4g}"
    add_line(fig, layers, own, "this token", CATEGORICAL[1], hover=hover, width=2.2, symbol="circle")
    fig.update_layout(
        xaxis=layer_axis(layers, limit=9) | light_grid(),
        yaxis={"title": {"text": f"residual norm (L2){', ' + note if note else ''}"}}
        | log_axis(np.concatenate([own, others.ravel()])),
        legend=ABOVE,
    )
    return fig
