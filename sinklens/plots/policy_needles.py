"""The panel of needles beside what policies cost."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.style import number, require_columns

NEEDED = (
    "policy",
    "rule",
    "kept",
    "needle_exact",
    "needle_rank",
    "delta_needle_log_prob",
    "needle_mass",
    "needle_kept",
)


def add_needles(fig: go.Figure, needles: pd.DataFrame, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the change in the answer's log-probability to the right of a figure of costs, in the same colours.

    Args:
        fig: Costs by keys that are read; it keeps the left part.
        needles: A comparison's table ``needle_summary``.
        styles: Marker of each rule (``symbol``, ``color``); rules without one are left out.
    """
    require_columns(needles, NEEDED, "policy_costs")
    table = needles[needles["delta_needle_log_prob"].notna() & needles["rule"].isin(list(styles))]
    for rule, rows in table.groupby("rule", sort=False):
        rows = rows.sort_values("kept")
        change, bars = rows["delta_needle_log_prob"], None
        if "delta_needle_log_prob_low" in rows:
            up, down = rows["delta_needle_log_prob_high"] - change, change - rows["delta_needle_log_prob_low"]
            bars = {"type": "data", "array": up, "arrayminus": down, "width": 3, "thickness": 1}
        fig.add_scatter(
            x=rows["kept"],
            y=change.astype("float32"),
            error_y=bars,
            mode="lines+markers",
            name=f"{rule}, needles",
            showlegend=False,
            line={"color": styles[str(rule)]["color"], "width": 1.5},
            marker={**styles[str(rule)], "size": 9},
            hovertext=[_hover(row) for row in rows.to_dict("records")],
            hoverinfo="text",
            xaxis="x2",
            yaxis="y2",
        )
    fig.update_layout(
        xaxis={"domain": [0, 0.46]},
        xaxis2={"domain": [0.58, 1], "anchor": "y2", "type": "log", "title": "keys read for a row (mean)"},
        yaxis2={"anchor": "x2", "title": "Δ log-probability of a needle's answer (nats per token)"},
    )


def _hover(row: dict[Any, Any]) -> str:
    kept, mass = number(row["needle_kept"], ".4f"), number(row["needle_mass"], ".4f")
    change, exact = number(row["delta_needle_log_prob"], "+.3f"), number(row["needle_exact"], ".0%")
    rank = number(row["needle_rank"], ".3g")
    return (
        f"<b>{row['policy']}</b><br>{exact} answered, mean rank {rank}, Δ log p {change} nats<br>"
        f"attention to the needle {mass}, left {kept}"
    )
