"""Attention maps of all heads at once, as small pictures in one grid of layers and heads."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import grid_background, thinned, weight_colours
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.pooling import pooled, span_label
from sinklens.plots.style import empty_figure, layer_list, new_figure
from sinklens.studies.census.result import AttentionMap

_TITLE: Final = "Attention maps of all heads"
_CELLS: Final = 300_000
_LEFT: Final = 64
_RIGHT: Final = 96


@draws(CENSUS, needs={"maps": ()}, settings={"n_layers": "model.n_layers"})
def head_montage(
    maps: Mapping[str, AttentionMap] | Iterable[AttentionMap],
    *,
    n_layers: int | None = None,
    cells: int = 64,
    log: bool = False,
    floor: float = 1e-3,
) -> go.Figure:
    """Draw every head's map as a small picture, layers downwards and heads to the right, one colour scale for all.

    In each picture queries run downwards and keys to the right. One heatmap with gaps, not one subplot a head: a
    browser draws 32 x 32 heads of it at once. Maps are pooled until all of them fit (the *largest* weight of each
    block of tokens) and the subtitle says how far. Missing, and grey: cells hidden by the mask, gaps, and heads
    without a map. The hover names head, tokens and weight.

    Args:
        maps: A census that kept them, `scan(model, maps=10_000)`, or maps of the same tokens.
        n_layers: Layers of the model, so that trailing layers without attention keep their (grey) row.
        cells: Most cells along a map; fewer when there are many heads.
        log: Colours by log10 from `floor` to 1, to see what a strong sink leaves dark.
        floor: Lower end of the log colours; smaller weights take the lowest colour.

    Raises:
        InputError: Maps of different tokens, two of one head, fewer than 2 cells, or `floor` not between 0 and 1.

    Source: after the overviews of CircuitsVis and BertViz.
    """
    listed = [*(maps.values() if isinstance(maps, Mapping) else maps)]
    if cells < 2:
        raise InputError(f"head_montage needs at least 2 cells along a map, not {cells}.")
    if not 0 < floor < 1:
        raise InputError(f"head_montage needs a floor between 0 and 1, not {floor}.")
    if not listed:
        return empty_figure(_TITLE, "Not applicable: there is no attention map; scan(model, maps=10_000) keeps all.")
    first = listed[0]
    if any((one.cell, one.n_tokens, one.tokens) != (first.cell, first.n_tokens, first.tokens) for one in listed):
        raise InputError("head_montage expected maps of the same tokens; draw each sequence by itself.")
    if len({(one.layer, one.head) for one in listed}) < len(listed):
        raise InputError("head_montage draws one map for each head, but got several of one; draw each run by itself.")
    rows = max(n_layers or 0, 1 + max(one.layer for one in listed))
    columns = 1 + max(one.head for one in listed)
    room = max(8, math.isqrt(_CELLS // (rows * columns)) - 1)
    factor = -(-first.values.shape[0] // min(room, cells))
    small = {(one.layer, one.head): pooled(one.values, factor, (0, 1)) for one in listed}
    side = next(iter(small.values())).shape[0]
    gap = max(1, side // 16)
    step = side + gap
    canvas = np.full((rows * step - gap, columns * step - gap), np.nan)
    for (layer, head), values in small.items():
        canvas[layer * step : layer * step + side, head * step : head * step + side] = values

    cell = first.cell * factor
    notes = ["One map a head: queries run downwards, keys to the right."]
    notes += [f"Pooled: each cell is the max over {cell} x {cell} tokens."] if cell > 1 else []
    notes.append("Grey: hidden by the mask.")
    without = sorted({*range(rows)} - {one.layer for one in listed})
    if without:
        notes.append(f"Grey rows: no map in {layer_list(without)}.")
    z, weight, options = weight_colours(canvas, floor if log else None)
    if log:
        notes.append(f"Log colours, clipped below {floor:g}.")

    pixels = max(20, min(120, 960 // columns, 900 // rows))
    width = max(560, columns * pixels + _LEFT + _RIGHT)
    fig = new_figure(_TITLE, " ".join(notes), height=rows * pixels, wrap=width // 8)
    fig.add_trace(
        go.Heatmap(
            z=z,
            x=np.arange(canvas.shape[1]),
            y=np.arange(canvas.shape[0]),
            hoverongaps=False,
            hovertemplate=f"%{{y}}<br>%{{x}}<br>{'largest ' if cell > 1 else ''}weight {weight}<extra></extra>",
            **options,
        )
    )
    spans = [(i * cell, min((i + 1) * cell, first.n_tokens)) for i in range(side)]
    tokens = [span_label(first.tokens, *span, most=3) for span in spans]
    fig.update_layout(
        **_axis("x", "head", columns, gap, [f"key {token}" for token in tokens]),
        **_axis("y", "layer", rows, gap, [f"query {token}" for token in tokens]),
        shapes=[*_gaps("x", columns, side, gap), *_gaps("y", rows, side, gap)],
        width=width,
        margin={"l": _LEFT, "r": _RIGHT},
    )
    fig.update_layout(
        xaxis={"constrain": "domain", "constraintoward": "left"},
        yaxis={"constrain": "domain", "constraintoward": "top", "scaleanchor": "x"},
    )
    fig.add_trace(go.Scatter(x=[None], y=[None], xaxis="x2", yaxis="y2", showlegend=False, hoverinfo="skip"))
    grid_background(fig)
    return fig


def _axis(name: str, what: str, count: int, gap: int, tokens: list[str]) -> dict[str, Any]:
    """An axis that names head (or layer) and token of every cell to the hover, and one over it that is drawn."""
    side = len(tokens)
    step = side + gap
    span = [-0.5, count * step - gap - 0.5]
    shown = thinned(count, 40)
    cells = [f"{what} {i}, {token}" for i in range(count) for token in (*tokens, *[""] * gap)][:-gap]
    return {
        f"{name}axis": {
            "tickmode": "array",
            "tickvals": [*range(len(cells))],
            "ticktext": cells,
            "showticklabels": False,
            "ticks": "",
            "range": span if name == "x" else span[::-1],
        },
        f"{name}axis2": {
            "overlaying": name,
            "matches": name,
            "side": "bottom" if name == "x" else "left",
            "tickmode": "array",
            "tickvals": [i * step + (side - 1) / 2 for i in shown],
            "ticktext": [str(i) for i in shown],
            "title": {"text": f"{what} (0-based)"},
        },
    }


def _gaps(name: str, count: int, side: int, gap: int) -> list[dict[str, Any]]:
    """White strips between the maps: masked cells are grey, and neighbours would run together."""
    other = "y" if name == "x" else "x"
    look: dict[str, Any] = {"type": "rect", "fillcolor": "white", "line": {"width": 0}, "layer": "above"}
    look |= {f"{other}0": 0, f"{other}1": 1, f"{other}ref": f"{other} domain"}
    starts = [i * (side + gap) - gap - 0.5 for i in range(1, count)]
    return [look | {f"{name}0": start, f"{name}1": start + gap} for start in starts]
