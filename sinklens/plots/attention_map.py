"""Attention map of one head."""

import html
from collections.abc import Mapping
from typing import Final

import numpy as np
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import add_token_axes, grid_background, weight_colours
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.pooling import span_label
from sinklens.plots.style import empty_figure, head_label, new_figure
from sinklens.studies.census.result import AttentionMap

_LEFT: Final = 128
_RIGHT: Final = 84
"""Margins in pixels: room for token labels, and for the colour bar."""


@draws(CENSUS, needs={"maps": ()})
def attention_map(
    map: AttentionMap | Mapping[str, AttentionMap],
    *,
    head: str | None = None,
    log: bool = False,
    floor: float = 1e-3,
    side: int = 460,
) -> go.Figure:
    """Draw one head's attention, queries downwards and keys to the right, colours from 0 to 1 on every map.

    Cells hidden by the causal (or sliding) mask are missing and grey, not 0. Pooled maps show the *largest*
    weight of each block of `cell x cell` tokens and say so. With `log`, colours are log10 from `floor` to 1
    and weights below `floor` take the lowest colour; the subtitle says that they are clipped. The hover
    always shows the weight itself.

    Args:
        map: A map, or a census (or its maps by name) with `head`.
        head: Whose map, such as `"L5H1"`; default: the first that the census kept, that of its strongest sink head.
        log: Log colours, to see what a strong sink leaves dark.
        floor: Lower end of the log colours.
        side: Width and height of the square map in pixels, without labels.

    Raises:
        InputError: No map of the head, values that do not fit the map's tokens, or `floor` not between 0 and 1.
    """
    if isinstance(map, Mapping):
        if not map:
            return empty_figure("Attention of one head", "Not applicable: the census kept no attention map.")
        chosen = head or next(iter(map))
        if chosen not in map:
            have = ", ".join(map)
            raise InputError(
                f"There is no map of {chosen}; the census kept {have}. scan(model, maps=10_000) keeps all."
            )
        map = map[chosen]
    rows, columns = map.values.shape
    cells = -(-map.n_tokens // map.cell)
    if (rows, columns) != (cells, cells) or len(map.tokens) != map.n_tokens:
        raise InputError(
            f"attention_map expected {cells} x {cells} cells and {map.n_tokens} tokens for a map of "
            f"cell {map.cell}, but got {rows} x {columns} cells and {len(map.tokens)} tokens."
        )
    if not 0 < floor < 1:
        raise InputError(f"attention_map needs a floor between 0 and 1, not {floor}.")
    notes = [map.why[:1].upper() + map.why[1:] + "."] if map.why else []
    pooled = map.cell > 1
    if pooled:
        notes.append(f"Pooled: each cell is the max over {map.cell} x {map.cell} tokens.")
    notes.append("Grey: hidden by the mask.")
    z, value, options = weight_colours(map.values, floor if log else None)
    if log:
        notes.append(f"Log colours, clipped below {floor:g}.")

    title = f"Attention of {head_label(map.layer, map.head)}"
    fig = new_figure(title, " ".join(notes), height=side, wrap=(side + _LEFT + _RIGHT) // 7)
    weight = "largest weight" if pooled else "weight"
    fig.add_trace(
        go.Heatmap(
            z=z,
            x=np.arange(columns),
            y=np.arange(rows),
            hoverongaps=False,
            hovertemplate=f"query %{{y}}<br>key %{{x}}<br>{weight} {value}<extra></extra>",
            **options,
        )
    )
    ticks = [map.tokens[i * map.cell] for i in range(cells)]
    spans = [(i * map.cell, min((i + 1) * map.cell, map.n_tokens)) for i in range(cells)]
    hover = [span_label(map.tokens, *span) for span in spans] if pooled else None
    first = " (first token of each cell)" if pooled else ""
    add_token_axes(
        fig,
        x=ticks,
        y=ticks,
        x_hover=hover,
        y_hover=hover,
        x_title=f"key token{first}",
        y_title=f"query token{first}",
        limit=max(8, side // 14),
    )
    # Tick labels stand upright below the map: a character is 7.3 px high there.
    bottom = 44 + round(7.3 * max(len(html.unescape(label)) for label in fig.layout.xaxis2.ticktext))
    # Fixed sizes: a map that fills its page has no square cells, and one that keeps them leaves holes.
    fig.update_layout(
        width=side + _LEFT + _RIGHT,
        height=fig.layout.height + bottom - fig.layout.margin.b,
        margin={"l": _LEFT, "r": _RIGHT, "b": bottom},
        xaxis={"constrain": "domain", "constraintoward": "left"},
        yaxis={"constrain": "domain", "constraintoward": "top", "scaleanchor": "x"},
    )
    fig.update_xaxes(automargin=False)
    fig.update_yaxes(automargin=False)
    grid_background(fig)
    return fig
