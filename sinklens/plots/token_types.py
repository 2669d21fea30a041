"""Which kinds of tokens are sinks: each kind's share of the sink tokens beside its share of all tokens."""

from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import named_axis, value_axis
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.marks import add_bars, add_marks
from sinklens.plots.style import (
    CATEGORICAL,
    MUTED,
    empty_figure,
    escaped,
    float32,
    new_figure,
    number,
    require_columns,
    token_label,
)

_TITLES: Final = {
    "sink": ("Which tokens are sinks", "sink tokens"),
    "massive_absolute": ("Which tokens are massive by the absolute bound", "massive tokens"),
    "massive_ratio": ("Which tokens are massive against the median", "massive tokens"),
}
_COUNTS: Final = {"sink": "n_sinks"}


@draws(CENSUS, needs={"token_types": ("by", "name", "occurrence")})
def token_types(
    types: pd.DataFrame,
    *,
    by: Literal["class", "token"] = "class",
    value: Literal["sink", "massive_absolute", "massive_ratio"] = "sink",
    limit: int = 20,
) -> go.Figure:
    """Draw which kinds of tokens are sinks: their share of all sink tokens (bar) and of all tokens (line), the null.

    A bar far beyond its line is a kind of sink token. Position 0 ("start") stands apart above the others: shares add
    up to 1 among the tokens at position 0 and among those after it. A kind without a share (there is no such token at
    all) has no bar.

    Args:
        types: A census, or its table of token types: `by`, `name`, `occurrence`, `n_tokens`, `token_share`, the count
            (`n_sinks`, ...) and the share (`sink_share`, ...).
        by: One row per class of tokens, or per token string.
        value: What is counted: tokens that are a sink for at least 5 % of the heads, or massive ones.
        limit: Most rows drawn: those with the most such tokens; the subtitle says how many are left out.

    Raises:
        InputError: An unknown `value` or `by`, or a missing column.
    """
    if value not in _TITLES or by not in ("class", "token"):
        raise InputError(f'token_types draws {", ".join(_TITLES)} by "class" or "token", not {value!r} by {by!r}.')
    count, share = _COUNTS.get(value, f"n_{value}"), f"{value}_share"
    needed = ("by", "name", "occurrence", "n_tokens", "token_share", count, share)
    require_columns(types, needed, "token_types")
    title, what = _TITLES[value]
    rows = types[types["by"] == by]
    if rows.empty or not (rows[count] > 0).any():
        return empty_figure(title, f"Not applicable: there are no {what} among these texts.")
    most = rows.sort_values([count, "n_tokens"], ascending=False, kind="stable").head(limit)
    drawn = pd.concat([most[most["occurrence"] == "start"], most[most["occurrence"] != "start"]])
    notes = [
        f"Bar: share of the {what}; line: share of all tokens (the null). Position 0 and the others apart.",
        f"In brackets: {what} of all.",
    ]
    if len(drawn) < len(rows):
        notes.append(f"{len(drawn)} of {len(rows)} kinds: those with the most {what}.")
    fig = new_figure(title, " ".join(notes), height=max(200, 26 * len(drawn)))
    y = np.arange(len(drawn))
    at_start = (drawn["occurrence"] == "start").to_numpy()
    colours = [CATEGORICAL[0] if start else CATEGORICAL[1] for start in at_start]
    look = {"customdata": [_hover(record, count, share, what) for record in drawn.to_dict("records")]}
    add_bars(fig, float32(drawn[share]), y, f"share of {what}", colours, orientation="h", hover="%{customdata}", **look)
    marker = {"symbol": "line-ns-open", "size": 18, "color": MUTED, "line": {"width": 2.5, "color": MUTED}}
    add_marks(fig, float32(drawn["token_share"]), y, "share of all tokens", marker)
    names = [f"{_name(record)} ({record[count]:,.0f} of {record['n_tokens']:,})" for record in drawn.to_dict("records")]
    fig.update_layout(
        xaxis=value_axis("share", range=[0, 1.02]),
        yaxis=named_axis(names, down=True),
        showlegend=False,
    )
    return fig


def _name(record: dict[Any, Any]) -> str:
    name = token_label(str(record["name"]), 20) if record["by"] == "token" else escaped(str(record["name"]))
    return f"{name}, {'position 0' if record['occurrence'] == 'start' else record['occurrence']}"


def _hover(record: dict[Any, Any], count: str, share: str, what: str) -> str:
    return (
        f"<b>{_name(record)}</b><br>{number(record[share], '.1%')} of the {what}, "
        f"{number(record['token_share'], '.1%')} of all tokens<br>"
        f"{number(record[count], ',.0f')} of {number(record['n_tokens'], ',.0f')} such tokens"
    )
