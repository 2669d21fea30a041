"""Entropy of attention against the norm of the sink's key, one mark a head."""

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.head_scatter import add_heads, mark_null
from sinklens.plots.style import empty_figure, head_label, new_figure, number, require_columns

_TITLE: Final = "Entropy of attention against the sink's key norm"


@draws(
    CENSUS,
    needs={"heads": ("layer", "head"), "state_norms": ("state", "layer", "kv_head")},
    made_by={"state_norms": 'measure(model, tokens, "state_norms")'},
)
def entropy_scatter(heads: pd.DataFrame, norms: pd.DataFrame, *, position: int = 0) -> go.Figure:
    """Draw every head by how spread out its attention is (entropy) and how long the sink's key vector is.

    Query heads that read the same keys (grouped-query attention) share their height. The vertical line is the entropy
    of even attention, the horizontal one at 1 a key as long as the others'. Sink heads with *short* keys, as Gu et al.
    find, lie at the lower left: their sink is made by direction, not by length. Heads without a number are not drawn
    and counted.

    Args:
        heads: A census, or its heads table: `layer`, `head`, `kv_head`, `entropy`, `is_sink`; `entropy_null` gives the
            vertical line when present.
        norms: The table `state_norms` of `measure(model, tokens, "state_norms")`, or of a scan with that detector.
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
    nulls = table.get("entropy_null", pd.Series(dtype=float))
    highest = float(np.nanmax([table["entropy"].max(), nulls.median()]))
    across = ("entropy", "entropy of attention (nats, mean over queries)", [-0.02, 1.05 * highest])
    fig = new_figure(_TITLE, " ".join(notes), height=380)
    add_heads(fig, table, across, ("key_ratio", f"|k| of position {position} / others"), _hover)
    mark_null(fig, nulls, "even attention", "even attention, median", ".2f", left=True)
    return fig


def _hover(record: dict[Any, Any]) -> str:
    name = f"<b>{head_label(int(record['layer']), int(record['head']))}</b>, KV head {int(record['kv_head'])}"
    return f"{name}<br>entropy {number(record['entropy'], '.3f')} nats<br>|k| / others: {number(record['key_ratio'])}"
