"""Heads that depend on a span of the prompt, and what emphasising it through them does."""

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import head_axis, layer_rows, named_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_cells, add_intervals, add_marks, add_white, add_words, room_above
from sinklens.plots.style import (
    CATEGORICAL,
    INK,
    MUTED,
    colorbar,
    empty_figure,
    escaped,
    new_figure,
    require_columns,
    signed_colours,
)
from sinklens.studies.span_heads.result import summarize

_TITLE: Final = "Heads that depend on a span"


@draws(
    "sinklens-span-heads",
    needs={"heads": ("layer", "head"), "steered": ("task", "kind", "draw")},
    whole={_TITLE: {}},
)
def span_heads(heads: pd.DataFrame, steered: pd.DataFrame) -> go.Figure:
    """Draw each head's dependence on the right document beyond another one, and what steering does to the answer.

    Left: the excess by head; rings are the heads that were chosen. Right: change of the answer's log-probability with
    95 % intervals over tasks: above 0 the emphasis helps.

    Args:
        heads: A :class:`~sinklens.studies.span_heads.result.SpanHeads`, or its `heads`.
        steered: Its `steered`.

    Raises:
        InputError: A missing column.
    """
    require_columns(heads, ("layer", "head", "name", "dependence", "other", "excess", "chosen"), "span_heads")
    require_columns(steered, ("task", "kind", "change"), "span_heads")
    if heads.empty:
        return empty_figure(_TITLE, "Not applicable: there are no heads.")
    shape = 1 + int(heads["layer"].max()), 1 + int(heads["head"].max())
    grid, said = np.full(shape, np.nan), np.full(shape, "", dtype=object)
    rows: list[Any] = [*heads.itertuples()]
    for row in rows:
        grid[row.layer, row.head] = row.excess
        said[row.layer, row.head] = f"{escaped(str(row.name))}: {row.dependence:.3f} beside {row.other:.3f}"
    fig = new_figure(_TITLE, "Circles: the heads that are steered through.", height=max(260, 14 * shape[0]))
    top = float(np.nanmax(np.abs(grid))) if np.isfinite(grid).any() else 1.0
    bar = colorbar("excess of |z(with) - z(without)|", x=0.43, len=0.9)
    add_cells(fig, grid, said.tolist(), colorbar=bar, **signed_colours(top))
    chosen = heads[heads["chosen"].astype(bool)]
    ring = {"symbol": "circle", "size": 8, "color": "white", "line": {"width": 1.6, "color": INK}}  # on any shade
    add_marks(fig, chosen["head"], chosen["layer"], "chosen", ring)
    table = summarize(steered)
    told = [f"{escaped(str(row.kind))}: {row.change:+z.3f} nats" for row in table.itertuples()]
    places = range(len(table))
    axes = {"xaxis": "x2", "yaxis": "y2"}
    add_intervals(fig, table, "change", [*places], told, name="steered", colour=CATEGORICAL[1], **axes)
    add_white(fig, "x2", "y2")
    fig.add_vline(x=0, line={"color": MUTED, "width": 1}, xref="x2", yref="y2")
    add_words(fig, "<b>the answer, steered</b>", 0.75, 1)
    fig.update_layout(
        xaxis=head_axis(shape[1], domain=[0, 0.42]),
        yaxis=layer_rows(shape[0]),
        xaxis2=value_axis("change of log p, nats a token", domain=[0.75, 1], anchor="y2"),
        yaxis2=named_axis([escaped(str(kind)) for kind in table["kind"]], down=True, anchor="x2"),
        showlegend=False,
        meta={"least_width": "page"},
    )
    room_above(fig)
    return fig
