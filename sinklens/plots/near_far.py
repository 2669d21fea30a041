"""What near keys alone, and far keys alone, cost some heads, beside random ones."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import named_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_intervals, add_marks
from sinklens.plots.style import BELOW, CATEGORICAL, MUTED, empty_figure, escaped, float32, new_figure, require_columns

_TITLE: Final = "What near keys alone, and far keys alone, cost"
_WAYS: Final = {"near": "sees near keys alone", "far": "sees far keys alone"}


@draws("sinklens-near-far", needs={"costs": ("kind", "draw", "sees")}, whole={_TITLE: {}})
def near_far(costs: pd.DataFrame) -> go.Figure:
    """Draw the rise of the loss when heads see near keys alone and when they see far ones alone.

    A head that works near has its upper mark at 0 and the lower one to the right, beyond the random heads.

    Args:
        costs: A :class:`~sinklens.studies.near_far.result.NearFar`, or its `costs`.

    Raises:
        InputError: A missing column.
    """
    require_columns(costs, ("kind", "heads", "sees", "cost", "low", "high"), "near_far")
    if costs.empty:
        return empty_figure(_TITLE, "Not applicable: no heads were restricted.")
    tested = costs[costs["kind"] == "tested"]
    fig = new_figure(_TITLE, f"{tested['heads'].iloc[0]}; bars: 95 % intervals over sequences.", height=150)
    place = {way: number for number, way in enumerate(_WAYS)}
    random = costs[costs["kind"] == "random"]
    if len(random):
        marker = {"symbol": "diamond-open", "size": 7, "color": MUTED}
        text = [escaped(str(heads)) for heads in random["heads"]]
        y = [place[way] + 0.15 for way in random["sees"]]
        x = float32(random["cost"])
        add_marks(fig, x, y, "as many random heads", marker, hover="%{text}<br>%{x:+.4f} nats", text=text)
    said = [f"{escaped(str(row.heads))}, {_WAYS[str(row.sees)]}: {row.cost:+z.4f} nats" for row in tested.itertuples()]
    rows = [place[way] for way in tested["sees"]]
    add_intervals(fig, tested, "cost", rows, said, name="tested heads", colour=CATEGORICAL[1])
    fig.add_vline(x=0, line={"color": MUTED, "width": 1})
    fig.update_layout(
        xaxis=value_axis("rise of the loss, nats per token"),
        yaxis=named_axis([*_WAYS.values()], down=True),
        showlegend=True,
        legend=BELOW,
        margin={"b": 100},
        height=fig.layout.height + 44,
    )
    return fig
