"""What it costs to exchange the value that a head reads at its sink, beside the same at another position."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import named_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_intervals
from sinklens.plots.style import BELOW, CATEGORICAL, MUTED, empty_figure, escaped, new_figure, require_columns

_TITLE: Final = "What the value at the sink does"
_EDITS: Final = {"zero": "nothing in its place", "ordinary": "an ordinary token's", "donor": "another text's"}


@draws(
    "sinklens-sink-causes",
    needs={"donors": ("layer", "kv_head", "edit", "place", "position")},
    whole={_TITLE: {}},
)
def donors(donors: pd.DataFrame) -> go.Figure:
    """Draw the change of the loss when one KV head's value at the sink is exchanged, beside the same elsewhere.

    Filled marks: at the sink; open ones: at another position. A no-op's marks stand at 0 whatever is put in.

    Args:
        donors: A :class:`~sinklens.studies.sink_causes.result.SinkCauses`, or its `donors`.

    Raises:
        InputError: A missing column.
    """
    columns = ("layer", "kv_head", "heads", "edit", "place", "position", "delta_loss")
    require_columns(donors, (*columns, "delta_loss_low", "delta_loss_high"), "donors")
    if donors.empty:
        return empty_figure(_TITLE, "Not measured: ask for it, as in explain_sinks(model, donors=True).")
    kept = donors.drop_duplicates(["layer", "kv_head"])
    order = [*zip(kept["layer"], kept["kv_head"], strict=True)]
    note = "The value of one KV head at one position, exchanged; bars: 95 % intervals over sequences."
    fig = new_figure(_TITLE, note, height=60 + 46 * len(order))
    for shift, (edit, words) in enumerate(_EDITS.items()):
        for place, symbol in (("sink", "circle"), ("control", "circle-open")):
            some = donors[(donors["edit"] == edit) & (donors["place"] == place)]
            if some.empty:
                continue
            rows = [
                order.index(head) + 0.22 * (shift - 1) + 0.07 * (place == "control")
                for head in zip(some["layer"], some["kv_head"], strict=True)
            ]
            said = [
                f"{escaped(str(row.heads))}, position {row.position}: {words}<br>{row.delta_loss:+z.4f} nats"
                for row in some.itertuples()
            ]
            ends = some.rename(columns={"delta_loss_low": "low", "delta_loss_high": "high"})
            name = f"{words}{'' if place == 'sink' else ', elsewhere'}"
            add_intervals(fig, ends, "delta_loss", rows, said, name=name, colour=CATEGORICAL[shift], symbol=symbol)
    fig.add_vline(x=0, line={"color": MUTED, "width": 1})
    names = [f"L{layer}KV{kv} ({escaped(str(heads))})" for (layer, kv), heads in zip(order, kept["heads"], strict=True)]
    fig.update_layout(
        xaxis=value_axis("change of the loss, nats per token"),
        yaxis=named_axis(names, down=True),
        legend=BELOW,
        margin={"b": 130},
        height=fig.layout.height + 74,
    )
    return fig
