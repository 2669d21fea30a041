"""Value drain against sink strength, one mark a head."""

from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.head_scatter import add_heads, mark_null
from sinklens.plots.style import empty_figure, head_label, new_figure, number, require_columns
from sinklens.wording import several

_TITLE: Final = "Value drain against sink strength"


@draws(CENSUS, needs={"heads": ("layer", "head")})
def drain_scatter(heads: pd.DataFrame) -> go.Figure:
    """Draw every head by the attention that its strongest key receives and by how short that key's value vector is.

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
        notes.append(f"Values of exactly 0 have no place on a log axis: {several(len(table) - len(positive), 'head')}.")
    across = ("importance", "attention received by the strongest key (share)", [-0.02, 1.02])
    fig = new_figure(_TITLE, " ".join(notes), height=380)
    add_heads(fig, positive, across, ("drain", "|v| of the strongest key / others"), _hover)
    mark_null(fig, positive["null"], "null", "median null", ".3f")
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
