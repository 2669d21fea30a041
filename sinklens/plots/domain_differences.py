"""Heads whose attention to position 0 differs most between domains."""

from typing import Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import light_grid, named_axis, value_axis
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.marks import add_marks
from sinklens.plots.style import (
    ABOVE,
    CATEGORICAL,
    INK,
    MUTED,
    empty_figure,
    escaped,
    float32,
    head_label,
    new_figure,
    require_columns,
)

_TITLE: Final = "Attention to position 0 by domain"
_COLUMNS: Final = (
    "layer", "head", "domain", "importance_first", "null_first", "importance_first_difference",
    "importance_first_difference_low", "importance_first_difference_high",
)  # fmt: skip


@draws(
    CENSUS,
    needs={"domains": ("layer", "head", "domain")},
    made_by={"domains": "scan(model, {name: texts, ...})"},
)
def domain_differences(domains: pd.DataFrame, *, limit: int = 24) -> go.Figure:
    """Draw how much attention each head gives the first token on every kind of text, and how far kinds differ.

    Left: one mark per domain. Right: the first domain minus the rest (with more domains, the one that differs most),
    with its 95 % interval; hollow where the interval holds 0. Heads are those with the largest differences, in
    the order of layers.

    Args:
        domains: A census of several domains (`scan(model, {name: texts, ...})`), or its `domains` table.
        limit: Most heads drawn.

    Raises:
        InputError: A missing column.
    """
    require_columns(domains, _COLUMNS, "domain_differences")
    names = list(dict.fromkeys(domains["domain"]))
    if domains.empty or len(names) < 2:
        return empty_figure(_TITLE, "Not applicable: one domain has nothing to be compared with.")
    if domains["importance_first_difference_low"].isna().all():
        return empty_figure(_TITLE, "Not applicable: an interval needs at least 5 sequences of each domain.")
    wanted = domains if len(names) > 2 else domains[domains["domain"] == names[0]]
    size = wanted["importance_first_difference"].abs()
    most = wanted.loc[size.groupby([wanted["layer"], wanted["head"]]).idxmax()]
    drawn = most.loc[most["importance_first_difference"].abs().nlargest(limit, keep="first").index]
    drawn = drawn.sort_values(["layer", "head"])
    heads = list(zip(drawn["layer"].astype(int), drawn["head"].astype(int), strict=True))
    rows = {head: place for place, head in enumerate(heads)}
    notes = ["Right: with 95 % intervals over sequences; hollow where they hold 0."]
    if len(heads) < len(most):
        notes.append(f"{len(heads)} of {len(most)} heads: those that differ most.")
    fig = new_figure(_TITLE, " ".join(notes), height=max(220, 22 * len(heads)))
    for name, colour in zip(names, (*CATEGORICAL,) * len(names), strict=False):
        own = domains[domains["domain"] == name]
        own = own[[(int(layer), int(head)) in rows for layer, head in zip(own["layer"], own["head"], strict=True)]]
        y = [rows[int(layer), int(head)] for layer, head in zip(own["layer"], own["head"], strict=True)]
        x = float32(own["importance_first"])
        add_marks(fig, x, y, escaped(name), {"color": colour, "size": 9}, hover=f"{escaped(name)}: %{{x:.3f}}")
    null = float(domains["null_first"].mean())
    same = bool(np.isclose(domains["null_first"].dropna(), null, rtol=1e-3).all())
    dashed = "uniform" if same else "uniform, mean"
    fig.add_vline(x=null, line={"color": MUTED, "width": 1.5, "dash": "dash"})
    low, high = drawn["importance_first_difference_low"], drawn["importance_first_difference_high"]
    value = drawn["importance_first_difference"]
    add_marks(
        fig,
        float32(value),
        list(range(len(heads))),
        None,
        {"color": INK, "size": 8, "symbol": np.where((low > 0) | (high < 0), "circle", "circle-open").tolist()},
        hover="%{text}: %{x:+.3f} [%{customdata[0]:+.3f}, %{customdata[1]:+.3f}]",
        xaxis="x2",
        showlegend=False,
        error_x={"array": float32(high - value), "arrayminus": float32(value - low), "color": MUTED, "width": 3},
        text=[f"{escaped(name)} minus the rest" for name in drawn["domain"]],
        customdata=np.stack([low, high], axis=1),
    )
    against = f"{names[0]} minus {names[1]}" if len(names) == 2 else "most different domain minus the rest"
    other = value_axis(escaped(against), domain=[0.6, 1], anchor="y", zeroline=True, zerolinecolor=MUTED)
    fig.update_layout(
        xaxis=value_axis(f"importance (dashed: {dashed})", domain=[0, 0.54], range=[0, 1]),
        xaxis2=other,
        yaxis=named_axis([head_label(*head) for head in heads], down=True) | light_grid(),
        legend=ABOVE,
    )
    return fig
