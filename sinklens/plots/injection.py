"""Tokens put into texts: the attention that they and the first token get, beside random tokens in their place."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import named_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_marks, add_words, room_above
from sinklens.plots.style import BELOW, CATEGORICAL, INK, MUTED, empty_figure, escaped, float32, new_figure, number
from sinklens.studies.injection.result import summarize

_TITLE: Final = "Inserted tokens as sinks"
_PANELS: Final = (
    ("inserted", "attention to what was inserted"),
    ("first", "attention to the first token"),
    ("change", "change of the loss, nats"),
)
_KINDS: Final = (
    ("token", "the token", CATEGORICAL[1], "circle"),
    ("random", "random tokens", MUTED, "diamond-open"),
    ("clean", "nothing inserted", INK, "line-ns-open"),
)


@draws(
    "sinklens-injection",
    needs={"runs": ("sequence", "place", "count", "kind", "draw")},
    whole={_TITLE: {}},
)
def injection(runs: pd.DataFrame) -> go.Figure:
    """Draw, for each place and number of inserted tokens, what later tokens attend to and what they lose.

    Means over sequences and heads. The token took the sink over where its mark lies far to the right of that of random
    tokens in the first panel and far to the left of the line in the second.

    Args:
        runs: An :class:`~sinklens.studies.injection.result.Injection`, or its `runs`.

    Raises:
        InputError: A missing column.
    """
    if runs.empty or not (runs["kind"] != "clean").any():
        return empty_figure(_TITLE, "Not applicable: nothing was inserted.")
    table = summarize(runs)
    rows = [*dict.fromkeys(zip(table["place"], table["count"], strict=True))]
    note = "Means over sequences; the hover has the difference from random tokens with its 95 % interval."
    fig = new_figure(_TITLE, note, height=80 + 40 * len(rows))
    width = 1 / len(_PANELS)
    for panel, (measure, title) in enumerate(_PANELS):
        part = table[table["measure"] == measure].set_index(["place", "count"]).reindex(rows)
        suffix = "" if panel == 0 else str(panel + 1)
        for kind, name, colour, symbol in _KINDS:
            if kind == "clean" and measure != "first":
                continue
            said = [
                f"{escaped(str(place))}, {count} inserted: {name} {number(each)}<br>token less random "
                f"{number(gap)} [{number(low)}, {number(high)}]"
                for (place, count), each, gap, low, high in zip(
                    rows, part[kind], part["difference"], part["low"], part["high"], strict=True
                )
            ]
            add_marks(
                fig,
                float32(part[kind]),
                [*range(len(rows))],
                name,
                {"color": colour, "symbol": symbol, "size": 10, "line": {"width": 2, "color": colour}},
                hover="%{text}",
                xaxis=f"x{suffix}",
                legendgroup=kind,
                showlegend=measure == "first",
                text=said,
            )
        domain = [panel * width + (0.02 if panel else 0), (panel + 1) * width - 0.02]
        fig.update_layout({f"xaxis{suffix}": value_axis("", domain=domain)})
        add_words(fig, f"<b>{title}</b>", domain[0], 1)
    names = [f"{escaped(str(place))}, {count}" for place, count in rows]
    height = fig.layout.height + 34
    fig.update_layout(yaxis=named_axis(names, down=True), legend=BELOW, margin={"b": 90}, height=height)
    fig.update_layout(meta={"least_width": "page"})
    room_above(fig)
    return fig
