"""What policies cost beside what they read: one line a rule, one mark a budget."""

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.draws import draws
from sinklens.plots.policy_needles import add_needles
from sinklens.plots.style import CATEGORICAL, empty_figure, new_figure, number, require_columns

_TITLE: Final = "What each rule costs at the keys it really reads"
_NOTE: Final = "Rows after the prompt; keys a head reads for a row, mean over heads, layers and rows."
_SYMBOLS: Final = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")


@draws(
    "sinklens-policies",
    needs={"summary": ("policy",), "needle_summary": ("policy",)},
    wants=("needle_summary",),
    made_by={"needle_summary": "compare_policies(..., needles=make_needles(model))"},
    whole={_TITLE: {}},
)
def policy_costs(summary: pd.DataFrame, needle_summary: pd.DataFrame | None = None) -> go.Figure:
    """Draw every policy by the keys that its heads really read for a row, and by the loss that this costs.

    Where no rule runs twice each has a row of its own. Rules that are run at several budgets are joined by a line; bars
    are 95 % intervals over texts. The legend says what a choice depends on (scope) and within what the kept keys are
    the same (group). Rules of scope "global" know the future: their marks are open, and their loss means nothing.

    Args:
        summary: A comparison, or its table `summary`: `policy`, `rule`, `scope`, `group`, `kept`, `delta_loss` with
            `delta_loss_low` and `delta_loss_high`, `mass`.
        needle_summary: Its table of that name, where it has needles: what the answers to needles lose stands beside.

    Raises:
        InputError: A missing column.
    """
    require_columns(summary, ("policy", "rule", "scope", "group", "kept", "delta_loss", "mass"), "policy_costs")
    table = summary[summary["kept"].notna() & summary["delta_loss"].notna()]
    if table.empty:
        return empty_figure(_TITLE, "Not applicable: no policy has both a number of keys and a loss.")
    needles = needle_summary is not None and not needle_summary.empty
    if table["rule"].is_unique and not needles:
        return _side_by_side(table)
    styles: dict[str, dict[str, Any]] = {}
    fig = new_figure(_TITLE, _NOTE, height=460)
    fig.add_hline(y=0, line={"width": 1, "dash": "dot", "color": "#888"})
    for at, (rule, rows) in enumerate(table.groupby("rule", sort=False)):
        rows = rows.sort_values("kept")
        first, colour = rows.iloc[0], CATEGORICAL[at % len(CATEGORICAL)]
        symbol = _SYMBOLS[(at // len(CATEGORICAL) + at) % len(_SYMBOLS)]
        symbol = f"{symbol}-open" if first["scope"] == "global" else symbol
        styles[str(rule)] = {"symbol": symbol, "color": colour}
        fig.add_scatter(
            x=rows["kept"],
            y=rows["delta_loss"].astype("float32"),
            error_y=_bars(rows),
            mode="lines+markers",
            name=f"{rule} ({first['scope']}, {first['group']})",
            line={"color": colour, "width": 1.5},
            marker={**styles[str(rule)], "size": 9},
            hovertext=[_hover(row) for row in rows.to_dict("records")],
            hoverinfo="text",
        )
    fig.update_xaxes(title="keys read for a row (mean)", type="log")
    fig.update_yaxes(title="Δ loss against full attention (nats per token)")
    fig.update_layout(legend={"title": {"text": "rule (scope, group)"}}, showlegend=True)
    if needle_summary is not None and needles:
        add_needles(fig, needle_summary, styles)
    return fig


def _side_by_side(table: pd.DataFrame) -> go.Figure:
    """A row for each rule where none has a second budget: marks at one number of keys would hide each other."""
    fig = new_figure(_TITLE, f"{_NOTE} Open marks: the rule looks ahead.", height=150 + 30 * len(table))
    places = np.arange(len(table))[::-1]
    symbols = ["circle-open" if scope == "global" else "circle" for scope in table["scope"]]
    fig.add_scatter(
        x=table["delta_loss"].astype("float32"),
        y=places,
        error_x=_bars(table),
        mode="markers",
        name="Δ loss",
        marker={"symbol": symbols, "size": 9, "color": CATEGORICAL[0]},
        hovertext=[_hover(row) for row in table.to_dict("records")],
        hoverinfo="text",
    )
    names = [f"{row['policy']}, {number(row['kept'], '.3g')} keys" for row in table.to_dict("records")]
    fig.update_yaxes(tickvals=places, ticktext=names, range=[-0.6, len(table) - 0.4], automargin=True)
    fig.update_xaxes(title="Δ loss against full attention (nats per token)", zeroline=True)
    return fig


def _bars(rows: pd.DataFrame) -> dict[str, Any] | None:
    """The 95 % intervals, where the table has them."""
    if "delta_loss_low" not in rows:
        return None
    up, down = rows["delta_loss_high"] - rows["delta_loss"], rows["delta_loss"] - rows["delta_loss_low"]
    return {"type": "data", "array": up, "arrayminus": down, "width": 3, "thickness": 1}


def _hover(row: dict[Any, Any]) -> str:
    kept, mass, cost = number(row["kept"], ".1f"), number(row["mass"], ".3f"), number(row["delta_loss"], "+.3f")
    return f"<b>{row['policy']}</b><br>{kept} keys a row, {mass} of the attention<br>Δ loss {cost} nats"
