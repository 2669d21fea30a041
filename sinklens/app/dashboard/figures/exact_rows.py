"""A piece of one head's attention map in full resolution."""

import numpy as np
import plotly.graph_objects as go

from sinklens.plots.axes import grid_background, thinned, weight_colours
from sinklens.plots.style import MONO, TEMPLATE, float32, token_label

_LEFT, _RIGHT, _TOP, _BOTTOM = 128, 84, 12, 128


def exact_rows(
    values: np.ndarray, first_query: int, first_key: int, tokens: list[str], *, log: bool = False, side: int = 340
) -> go.Figure:
    """Draw exact attention weights of some queries on some keys; what the mask hides is grey.

    Args:
        values: ``[q_pos k_pos]``, NaN where the mask hides the key.
        first_query: Position of row 0.
        first_key: Position of column 0.
        tokens: Of the whole sequence.
        log: Log colours from 0.001 to 1.
        side: Pixels of the map.
    """
    rows, columns = values.shape
    z, _, options = weight_colours(values, 1e-3 if log else None)
    fig = go.Figure(
        layout={
            "template": TEMPLATE,
            "width": side + _LEFT + _RIGHT,
            "height": side + _TOP + _BOTTOM,
            "margin": {"l": _LEFT, "r": _RIGHT, "t": _TOP, "b": _BOTTOM},
        }
    )
    fig.add_trace(
        go.Heatmap(
            z=z,
            x0=first_key,
            y0=first_query,
            dx=1,
            dy=1,
            hoverongaps=False,
            hovertemplate="query %{y}<br>key %{x}<br>weight %{customdata:.4f}<extra></extra>",
            **options | {"customdata": float32(values)},
        )
    )

    def ticks(first: int, count: int) -> dict[str, object]:
        shown = [first + i for i in thinned(count, max(8, side // 14))]
        names = [f"{i} {token_label(tokens[i], 9)}" if i < len(tokens) else str(i) for i in shown]
        return {"tickvals": shown, "ticktext": names, "tickfont": {"family": MONO, "size": 12}, "automargin": False}

    fig.update_layout(
        xaxis=ticks(first_key, columns)
        | {"range": [first_key - 0.5, first_key + columns - 0.5], "tickangle": -90, "title": {"text": "key token"}},
        yaxis=ticks(first_query, rows)
        | {"range": [first_query + rows - 0.5, first_query - 0.5], "title": {"text": "query token"}},
    )
    grid_background(fig)
    return fig
