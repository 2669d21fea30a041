"""Which changes of attention, training and data grow a sink: one row a condition, one point a seed."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import light_grid, named_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_marks
from sinklens.plots.style import CATEGORICAL, empty_figure, escaped, float32, new_figure, require_columns

_TITLE: Final = "What grows a sink: small decoders on Bigram-Backcopy"
_PANELS: Final[tuple[tuple[str, tuple[tuple[str, str], ...]], ...]] = (
    (
        "weight share on position 0",
        (("mass_first_bigram", "dormant queries"), ("mass_first_backcopy", "trigger queries")),
    ),
    (
        "weight on no token",
        (("missing_mass_bigram", "dormant queries"), ("missing_mass_backcopy", "trigger queries")),
    ),
    ("value norm at position 0 / others", (("drain_first", "all queries"),)),
    ("norm written by the head", (("output_norm_bigram", "dormant queries"), ("output_norm_backcopy", ""))),
)
_LOOK: Final = {
    "dormant": (CATEGORICAL[1], "circle"),
    "trigger": (CATEGORICAL[0], "diamond-open"),
    "value": (CATEGORICAL[2], "square"),
}


@draws(needs={"summary": ("condition", "figure")})
def sink_emergence(summary: pd.DataFrame) -> go.Figure:
    """Draw what grows a sink in small trained models: a row for a condition, a point for a seed, a tick for their mean.

    Panels: the share of its weight that a query puts on position 0; the weight that goes to no token (a learned key or
    logit, or clipping); the value drain; and the norm of what the head writes, on a log axis. Dormant queries
    (circles) have nothing to copy, trigger queries (diamonds) have. Conditions whose row sums are free are marked
    with an asterisk: their shares are proxy scores. What does not apply to a condition is missing, not 0.

    Args:
        summary: One row per condition and figure with ``condition, group, reading, figure, mean, values`` (seeds
            joined by semicolons), in the order to draw.
    """
    require_columns(summary, ("condition", "group", "reading", "figure", "mean", "values"), "sink_emergence")
    drawn = [figure for _title, traces in _PANELS for figure, _name in traces]
    table = summary[summary["figure"].isin(drawn)]
    if table.empty:
        return empty_figure(_TITLE, "Not applicable: no condition was measured.")
    conditions = list(dict.fromkeys(table["condition"]))
    proxy = set(table.loc[table["reading"] == "proxy", "condition"])
    seeds = max(len(values.split(";")) for values in table["values"])
    subtitle = (
        f"One layer, one head and a BOS unless the name says otherwise; each mark is one of {seeds} seeds, the line "
        "their mean. Circles: queries with nothing to copy; diamonds: queries that copy. * row sums are free: "
        "shares of the row's sum (proxy)."
    )
    fig = new_figure(_TITLE, subtitle, height=22 * len(conditions) + 40, wrap=150)
    width = 1 / len(_PANELS)
    for panel, (title, traces) in enumerate(_PANELS):
        axis = "" if panel == 0 else str(panel + 1)
        for figure, _name in traces:
            look = "trigger" if figure.endswith("backcopy") else "value" if figure == "drain_first" else "dormant"
            _add(fig, table[table["figure"] == figure], conditions, axis, look)
        lower = panel * width + (0 if panel == 0 else 0.02)
        log = figure.startswith("output_norm")
        ticks = {"type": "log", "tickvals": [0.001, 0.01, 0.1, 1, 10, 100, 1000]} if log else {"rangemode": "tozero"}
        across = value_axis(title, domain=[lower, (panel + 1) * width - 0.01], anchor=f"y{axis}")
        names = [escaped(name) + (" *" if name in proxy else "") for name in conditions]
        rows = named_axis(names if panel == 0 else [""] * len(names), range=[len(names) - 0.4, -0.6], anchor=f"x{axis}")
        fig.update_layout({f"xaxis{axis}": across | ticks, f"yaxis{axis}": rows | light_grid()})
    fig.update_layout(showlegend=False, width=1250, margin={"l": 190})
    return fig


def _add(fig: go.Figure, table: pd.DataFrame, conditions: list[str], axis: str, look: str) -> None:
    colour, symbol = _LOOK[look]
    x, y, text = [], [], []
    for record in table.to_dict("records"):
        row = conditions.index(str(record["condition"]))
        for seed, value in enumerate(str(record["values"]).split(";")):
            x.append(float(value))
            y.append(row)
            text.append(f"{escaped(str(record['condition']))}, seed {seed}<br>{record['figure']}")
    marker = {"color": colour, "symbol": symbol, "size": 7, "opacity": 0.8}
    across = float32(x)
    add_marks(fig, across, y, None, marker, hover="%{text}: %{x:.4g}", text=text, xaxis=f"x{axis}", yaxis=f"y{axis}")
    means = [(float(m), conditions.index(str(c))) for c, m in zip(table["condition"], table["mean"], strict=True)]
    marker = {"symbol": "line-ns-open", "size": 13, "color": colour, "line": {"width": 2}}
    across = float32([m for m, _row in means])
    add_marks(fig, across, [row for _m, row in means], None, marker, xaxis=f"x{axis}", yaxis=f"y{axis}")
