"""Value drain against sink strength, one mark a head."""

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import light_grid, log_axis
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.style import (
    CATEGORICAL,
    MUTED,
    empty_figure,
    float32,
    head_label,
    new_figure,
    number,
    require_columns,
)

_TITLE: Final = "Value drain against sink strength"
LOOKS: Final = ((True, "sink head", CATEGORICAL[1], "circle"), (False, "other head", CATEGORICAL[0], "diamond-open"))
"""How sink heads and others look in scatter plots of heads."""


@draws(CENSUS, needs={"heads": ("layer", "head")})
def drain_scatter(heads: pd.DataFrame) -> go.Figure:
    """Draw every head by how much attention its strongest key receives and how small that key's value state is.

    The vertical line is the causal-uniform null of the strongest key (the median over heads when they differ), the
    horizontal one at 1 no drain. Sinks with drained values, the mutual reinforcement that Guo et al. describe, lie at
    the lower right. Filled circles are heads that the census calls sink heads, open diamonds all others. Heads without
    a number are not drawn; the subtitle counts them.

    Args:
        heads: A census, or its heads table: `layer`, `head`, `importance`, `null`, `drain`, `is_sink`; `sink_position`
            and `drain_wo` show in the hover when present.

    Raises:
        InputError: A missing column.

    Source: after Guo et al. 2024 (arXiv 2410.13835), with the null lines added.
    """
    require_columns(heads, ("layer", "head", "importance", "null", "drain", "is_sink"), "drain_scatter")
    table = heads.dropna(subset=["importance", "drain"])
    positive = table[table["drain"] > 0]
    if positive.empty:
        return empty_figure(_TITLE, "Not applicable: no head has both an attention sink score and a value drain.")
    notes = [f"{len(positive):,} heads, each at its strongest key. Log axis; 1 = values as long as the others'."]
    if len(table) < len(heads):
        notes.append(f"Not applicable and not drawn: {len(heads) - len(table)}.")
    if len(positive) < len(table):
        notes.append(f"Values of exactly 0 have no place on a log axis: {len(table) - len(positive)} head(s).")
    fig = new_figure(_TITLE, " ".join(notes), height=380)
    for sink, name, colour, symbol in LOOKS:
        rows = positive[positive["is_sink"].astype(bool) == sink]
        if rows.empty:
            continue
        fig.add_trace(
            go.Scatter(
                x=float32(rows["importance"]),
                y=float32(rows["drain"]),
                name=f"{name} ({len(rows):,})",
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.2, "color": colour}},
                opacity=0.85,
                text=[_hover(record) for record in rows.to_dict("records")],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    nulls = positive["null"].dropna()
    if len(nulls):
        null = float(nulls.median())
        same = bool(np.isclose(nulls, null, rtol=1e-3).all())
        fig.add_vline(x=null, line={"color": MUTED, "width": 1.5, "dash": "dash"})
        fig.add_annotation(
            x=null, y=1, yref="paper", text=f" {'null' if same else 'median null'} {null:.3f}", showarrow=False,
            xanchor="left", yanchor="top", font={"size": 12, "color": MUTED},
        )  # fmt: skip
    fig.add_hline(y=1, line={"color": MUTED, "width": 1.5, "dash": "dash"})
    fig.update_layout(
        xaxis={"title": {"text": "attention received by the strongest key (share)"}, "range": [-0.02, 1.02]}
        | light_grid(),
        yaxis={"title": {"text": "|v| of the strongest key / others"}} | log_axis([*positive["drain"], 1.0]),
        showlegend=True,
    )
    return fig


def _hover(record: dict[Any, Any]) -> str:
    lines = [f"<b>{head_label(int(record['layer']), int(record['head']))}</b>"]
    if "sink_position" in record:
        lines.append(f"strongest key at position {number(record['sink_position'], '.0f')}")
    lines.append(f"attention {number(record['importance'], '.3f')}, null {number(record['null'], '.3f')}")
    lines.append(f"|v| / others: {number(record['drain'])}")
    if "drain_wo" in record:
        lines.append(f"|W_O v| / others: {number(record['drain_wo'])}")
    return "<br>".join(lines)
