"""Which side each head takes when a prompt says another thing than the model knows."""

from typing import Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_marks, add_words
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

_TITLE: Final = "Which side heads take"
_LOOKS: Final = (
    ("", "neither", MUTED, "diamond-open"),
    ("memory", "for the memory's answer", CATEGORICAL[1], "square"),
    ("context", "for the context's answer", CATEGORICAL[0], "circle"),
)


@draws(
    "sinklens-conflict-heads",
    needs={"heads": ("layer", "head")},
    whole={_TITLE: {}},
)
def conflict_sides(heads: pd.DataFrame, *, named: int = 6) -> go.Figure:
    """Draw every head by what it adds to the answer of the context and to that of the memory.

    Below the dashed diagonal a head argues for what the prompt says, above it for what the model knows.

    Args:
        heads: A :class:`~sinklens.studies.conflict_heads.result.ConflictHeads`, or its `heads`.
        named: Heads with a name beside them, those with the largest difference.

    Raises:
        InputError: A missing column.
    """
    require_columns(heads, ("layer", "head", "context", "memory", "conflict", "side"), "conflict_sides")
    table = heads.dropna(subset=["context", "memory"])
    if table.empty:
        return empty_figure(_TITLE, "Not applicable: no head has a share of the logits.")
    note = "What a head does to the logit of each answer, less what it does to an unrelated one's; mean over prompts."
    if len(table) < len(heads):
        note += f" Not applicable and not drawn: {len(heads) - len(table)}."
    fig = new_figure(_TITLE, note, height=420)
    both = np.concatenate([table["context"].to_numpy(float), table["memory"].to_numpy(float), [0.0]])
    ends = [float(both.min()), float(both.max())]
    look = {"color": MUTED, "width": 1.2, "dash": "dash"}
    fig.add_trace(go.Scatter(x=ends, y=float32(ends), mode="lines", line=look, showlegend=False, hoverinfo="skip"))
    for side, name, colour, symbol in _LOOKS:
        rows = table[table["side"] == side]
        if rows.empty:
            continue
        texts = [
            f"<b>{head_label(row['layer'], row['head'])}</b><br>context {number(row['context'])}, memory "
            f"{number(row['memory'])}<br>difference {number(row['conflict'])}"
            for row in rows.to_dict("records")
        ]
        marker = {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.2, "color": colour}}
        x = float32(rows["context"])
        add_marks(fig, x, float32(rows["memory"]), f"{name} ({len(rows)})", marker, hover="%{text}", text=texts)
    strongest = table["conflict"].abs().sort_values(ascending=False, kind="stable").index[:named]
    for row in table.loc[strongest].to_dict("records"):
        words, look = f" {head_label(row['layer'], row['head'])}", {"xref": "x", "yref": "y", "font": {"size": 12}}
        add_words(fig, words, row["context"], row["memory"], yanchor="middle", **look)
    fig.update_layout(
        xaxis=value_axis("logits for the context's answer"), yaxis=value_axis("logits for the memory's answer"),
        showlegend=True,
    )  # fmt: skip
    return fig
