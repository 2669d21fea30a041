"""Residual norm of one token by layer, beside the other tokens of its sequence."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import layer_axis, light_grid, log_axis
from sinklens.plots.style import CATEGORICAL, MUTED, TEMPLATE, empty_figure, float32


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
        for values, fill in ((high, None), (low, "tonexty")):
            fig.add_trace(
                go.Scatter(
                    x=layers, y=float32(values), mode="lines", line={"width": 0}, fill=fill, hoverinfo="skip",
                    fillcolor="rgba(82,96,109,0.16)" if fill else None, showlegend=fill is not None,
                    name="range of the others",
                )
            )  # fmt: skip
        fig.add_trace(
            go.Scatter(
                x=layers,
                y=float32(middle),
                name="median of the others",
                mode="lines+markers",
                marker={"symbol": "square", "size": 6},
                line={"color": MUTED, "width": 1.8},
                hovertemplate="layer %{x}<br>median of the others %{y:.4g}<extra></extra>",
            )
        )
    fig.add_trace(
        go.Scatter(
            x=layers,
            y=float32(own),
            name="this token",
            mode="lines+markers",
            marker={"size": 7},
            line={"color": CATEGORICAL[1], "width": 2.2},
            hovertemplate="layer %{x}<br>this token %{y:.4g}<extra></extra>",
        )
    )
    fig.update_layout(
        xaxis=layer_axis(layers, limit=20) | light_grid(),
        yaxis={"title": {"text": f"residual norm (L2){', ' + note if note else ''}"}}
        | log_axis(np.concatenate([own, others.ravel()])),
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
    )
    return fig
