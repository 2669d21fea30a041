"""Attention maps of all heads of one layer as small pictures; a click on one chooses its head."""

import math
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from sinklens.plots.axes import grid_background, weight_colours
from sinklens.plots.pooling import pooled
from sinklens.plots.style import INK, TEMPLATE, empty_figure, head_label
from sinklens.studies.census.result import AttentionMap

_CELLS = 40_000


def arranged(heads: int, cells: int) -> tuple[int, int, int]:
    """Columns of the arrangement, cells along a small map, and cells from one map to the next.

    >>> arranged(9, 64)
    (4, 64, 76)
    """
    columns = math.ceil(math.sqrt(1.5 * heads))
    side = min(cells, max(12, math.isqrt(_CELLS // heads)))
    side = -(-cells // -(-cells // side))  # what pooling by whole cells gives
    return columns, side, side + max(4, side // 5)


def head_at(x: int, y: int, heads: int, cells: int) -> int | None:
    """The head whose picture a cell of the figure belongs to; ``None`` beside all of them."""
    columns, _, step = arranged(heads, cells)
    head = y // step * columns + x // step
    return head if 0 <= x < columns * step and 0 <= head < heads else None


def layer_maps(
    maps: Mapping[int, AttentionMap], heads: int, *, chosen: int, log: bool = False, width: int = 600
) -> go.Figure:
    """Draw the map of every head of a layer, all on one colour scale; what the mask hides is grey.

    Args:
        maps: Of one text, by head.
        heads: How many heads the layer has.
        chosen: Framed.
        log: Log colours from 0.001 to 1.
        width: Pixels.
    """
    if not maps:
        return empty_figure("Maps of this layer", "None is kept or computed.")
    first = next(iter(maps.values()))
    columns, side, step = arranged(heads, len(first.values))
    factor = -(-len(first.values) // side)
    rows = -(-heads // columns)
    canvas = np.full((rows * step, columns * step), np.nan, dtype=np.float32)
    words = []
    for head in range(heads):
        top, left = head // columns * step, head % columns * step
        if head in maps:
            values = pooled(maps[head].values, factor, (0, 1))
            canvas[top : top + len(values), left : left + len(values)] = values
        words.append(
            {
                "text": head_label(first.layer, head),
                "x": left + side / 2,
                "y": top - 0.5,
                "showarrow": False,
                "yanchor": "bottom",
                "yshift": -1,
                "font": {"size": 12},
            }
        )
    z, weight, options = weight_colours(canvas, 1e-3 if log else None)
    fig = go.Figure(layout={"template": TEMPLATE, "margin": {"l": 6, "r": 84, "t": 22, "b": 6}})
    largest = "largest " if first.cell * factor > 1 else ""
    said = f"{largest}weight {weight}<extra></extra>"
    fig.add_trace(go.Heatmap(z=z, hoverongaps=False, hovertemplate=said, **options))
    spans = [(left - 0.5, top - 0.5) for top in range(0, rows * step, step) for left in range(0, columns * step, step)]
    gaps = [{"type": "rect", "x0": x + side, "x1": x + step, "y0": y, "y1": y + step} for x, y in spans] + [
        {"type": "rect", "x0": x, "x1": x + step, "y0": y + side, "y1": y + step} for x, y in spans
    ]
    gaps += [{"type": "rect", "x0": x, "x1": x + step, "y0": y, "y1": y + step} for x, y in spans[heads:]]
    look = {"fillcolor": "white", "line": {"width": 0}, "layer": "above"}
    x, y = spans[chosen] if chosen < heads else (-9, -9)
    frame = {
        "type": "rect",
        "x0": x,
        "x1": x + side,
        "y0": y,
        "y1": y + side,
        "line": {"color": INK, "width": 3},
    }
    height = 28 + (width - 90) * rows * step / (columns * step)
    fig.update_layout(
        width=width,
        height=round(height),
        annotations=words,
        shapes=[*(gap | look for gap in gaps), frame],
        xaxis={"visible": False, "range": [-0.5, columns * step - 0.5]},
        yaxis={"visible": False, "range": [rows * step - 0.5, -0.5]},
    )
    grid_background(fig)
    return fig
