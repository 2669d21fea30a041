"""Entropy of attention against the norm of the sink's key, one mark a head."""

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import light_grid, log_axis
from sinklens.plots.drain_scatter import LOOKS
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.style import MUTED, empty_figure, float32, head_label, new_figure, number, require_columns

_TITLE: Final = "Entropy of attention against the sink's key norm"


@draws(
    CENSUS,
    needs={"heads": ("layer", "head"), "norms": ("state", "layer", "kv_head")},
    made_by={"norms": "norms=measure_state_norms(model, tokens)"},
)
def entropy_scatter(heads: pd.DataFrame, norms: pd.DataFrame, *, position: int = 0) -> go.Figure:
    """Draw every head by the entropy of its attention and how long the sink's key is beside the others'.

    Query heads that read the same keys (grouped-query attention) share their height. The vertical line is the entropy
    of even attention, the horizontal one at 1 a key as long as the others'. Sink heads with *short* keys, as Gu et al.
    find, lie at the lower left: their sink is made by direction, not by length. Heads without a number are not drawn
    and counted.

    Args:
        heads: A census, or its heads table: `layer`, `head`, `kv_head`, `entropy`, `is_sink`; `entropy_null` gives the
            vertical line when present.
        norms: What `measure_state_norms(model, tokens)` gives; no census holds it.
        position: Position of the sink that `norms` was measured at.

    Raises:
        InputError: A missing column.

    Source: key norms after Gu et al. 2025 (arXiv 2410.10781, section 3.1).
    """
    require_columns(heads, ("layer", "head", "kv_head", "entropy", "is_sink"), "entropy_scatter")
    require_columns(norms, ("layer", "state", "kv_head", "ratio"), "entropy_scatter (norms)")
    keys = norms[norms["state"] == "key"][["layer", "kv_head", "ratio"]].rename(columns={"ratio": "key_ratio"})
    joined = heads.merge(keys.astype({"layer": "int64", "kv_head": "int64"}), on=["layer", "kv_head"], how="left")
    table = joined[(joined["key_ratio"] > 0) & joined["entropy"].notna()]
    if table.empty:
        return empty_figure(_TITLE, "Not applicable: no head has both an entropy and a key norm.")
    notes = [f"{len(table):,} heads; key of position {position}. Log axis; 1 = a key as long as the others'."]
    if len(table) < len(heads):
        notes.append(f"Not applicable and not drawn: {len(heads) - len(table)}.")
    fig = new_figure(_TITLE, " ".join(notes), height=380)
    for sink, name, colour, symbol in LOOKS:
        rows = table[table["is_sink"].astype(bool) == sink]
        if rows.empty:
            continue
        fig.add_trace(
            go.Scatter(
                x=float32(rows["entropy"]),
                y=float32(rows["key_ratio"]),
                name=f"{name} ({len(rows):,})",
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.2, "color": colour}},
                opacity=0.85,
                text=[_hover(record) for record in rows.to_dict("records")],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    highest = float(table["entropy"].max())
    if "entropy_null" in table and table["entropy_null"].notna().any():
        null = float(table["entropy_null"].median())
        highest = max(highest, null)
        same = bool(np.isclose(table["entropy_null"].dropna(), null, rtol=1e-3).all())
        fig.add_vline(x=null, line={"color": MUTED, "width": 1.5, "dash": "dash"})
        fig.add_annotation(
            x=null, y=1, yref="paper", text=f"{'even attention' if same else 'even attention, median'} {null:.2f} ",
            showarrow=False, xanchor="right", yanchor="top", font={"size": 12, "color": MUTED},
        )  # fmt: skip
    fig.add_hline(y=1, line={"color": MUTED, "width": 1.5, "dash": "dash"})
    fig.update_layout(
        xaxis={"title": {"text": "entropy of attention (nats, mean over queries)"}, "range": [-0.02, 1.05 * highest]}
        | light_grid(),
        yaxis={"title": {"text": f"|k| of position {position} / others"}} | log_axis([*table["key_ratio"], 1.0]),
        showlegend=True,
    )
    return fig


def _hover(record: dict[Any, Any]) -> str:
    name = f"<b>{head_label(int(record['layer']), int(record['head']))}</b>, KV head {int(record['kv_head'])}"
    return f"{name}<br>entropy {number(record['entropy'], '.3f')} nats<br>|k| / others: {number(record['key_ratio'])}"
