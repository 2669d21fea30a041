"""Heads by domain and token class: how much each rests on the sink, and what its removal costs there."""

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import named_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_cells
from sinklens.plots.style import (
    SEQUENTIAL,
    colorbar,
    empty_figure,
    escaped,
    head_label,
    new_figure,
    number,
    require_columns,
    signed_colours,
)
from sinklens.wording import several

_TITLE: Final = "Active and dormant heads"
_MARKS: Final = {"active": "A", "dormant": "D", "idle": "i", "loaded sink": "L", "unclear": "?", "not judged": ""}
_COLUMNS: Final = ("layer", "head", "domain", "class", "mass", "delta", "label")


@draws(
    "sinklens-active-dormant",
    needs={"heads": ("layer", "head", "domain", "class")},
    whole={"Active and dormant heads": {}},
)
def active_dormant(heads: pd.DataFrame, *, limit: int = 40, effect: float | None = None) -> go.Figure:
    """Draw where heads rest on the sink and where predictions need them: heads by domain and token class, twice.

    Left the attention on the sink, right the rise of the loss without the head. A letter in each cell is the head's
    label there. Rises have colours centred on 0, symmetric, that end at the largest magnitude or at `effect`; cells
    beyond are clipped and counted. Of more than `limit` heads those are drawn whose sink mass differs most between
    columns, in the order of layers.

    Args:
        heads: A result of `active_dormant`, or its table: layer, head, domain, class, mass, delta, label; the interval
            and the evidence show in the hover when present.
        limit: Most heads drawn.
        effect: Magnitude at which the colours of the rise end.

    Raises:
        InputError: A missing column.

    Source: after the figures of Guo et al. 2024 (arXiv 2410.13835), with the ablation beside the attention.
    """
    require_columns(heads, _COLUMNS, "active_dormant")
    if heads.empty:
        return empty_figure(_TITLE, "Not applicable: no head was judged.")
    table = heads.assign(group=[_group(row) for row in heads.to_dict("records")])
    groups = list(dict.fromkeys(table["group"]))
    masses = table.pivot(index=["layer", "head"], columns="group", values="mass")[groups]
    spread = (masses.max(axis=1) - masses.min(axis=1)).fillna(0)
    drawn = spread.nlargest(limit, keep="first").index.sort_values()
    cells = {(row["layer"], row["head"], row["group"]): row for row in table.to_dict("records")}
    grid = [[cells.get((*head, group)) for group in groups] for head in drawn]
    marks = [["" if cell is None else _MARKS.get(str(cell["label"]), "") for cell in row] for row in grid]
    hover = [["" if cell is None else _hover(cell) for cell in row] for row in grid]

    mass, delta = (_values(grid, name) for name in ("mass", "delta"))
    largest = float(np.nanmax(np.abs(delta))) if np.isfinite(delta).any() else 1.0
    top = effect or largest or 1.0
    clipped = int((np.abs(delta) > top + 1e-12).sum())
    notes = ["A active, D dormant, i idle (neither needed nor on the sink), L loaded sink, ? unclear."]
    if len(drawn) < len(spread):
        notes.append(f"{len(drawn)} of {len(spread)} heads: those whose sink mass differs most.")
    if clipped:
        notes.append(
            f"Colours are clipped: {several(clipped, 'cell')} {'lies' if clipped == 1 else 'lie'} beyond the "
            f"ends of the colour bar."
        )
    fig = new_figure(_TITLE, " ".join(notes), height=max(230, 22 * len(drawn)), wrap=100)
    panels = (
        (mass, "x", 0.41, "attention on the sink", {"zmin": 0, "zmax": 1, "colorscale": SEQUENTIAL}),
        (delta, "x2", 1.0, "loss without it (+ nats)", signed_colours(top)),
    )
    for z, axis, right, name, options in panels:
        bar = colorbar(name, x=right + 0.005, xanchor="left", len=1.0)
        words = {"text": marks, "texttemplate": "%{text}", "textfont": {"size": 13}}
        words |= {"customdata": hover, "hovertemplate": "%{customdata}<extra></extra>"}
        add_cells(fig, z, xaxis=axis, colorbar=bar, **words, **options)
    what = "domain" if heads["class"].nunique() == 1 else "domain and token class"
    ticks = named_axis(map(escaped, groups), title={"text": what})
    fig.update_layout(
        xaxis=ticks | {"domain": [0, 0.41]},
        xaxis2=ticks | {"domain": [0.59, 1.0], "anchor": "y"},
        yaxis=named_axis([head_label(*head) for head in drawn], down=True),
    )
    return fig


def _group(row: dict[Any, Any]) -> str:
    if row["class"] == "all":
        return str(row["domain"])
    return str(row["class"]) if row["domain"] == "text" else f"{row['domain']}: {row['class']}"


def _values(grid: list[list[dict[Any, Any] | None]], name: str) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.array([[np.nan if cell is None else cell[name] for cell in row] for row in grid], dtype=float)


def _hover(cell: dict[Any, Any]) -> str:
    name = f"<b>{head_label(cell['layer'], cell['head'])}</b>"
    lines = [f"{name} on {escaped(_group(cell))}: {escaped(str(cell['label']))}"]
    lines.append(f"attention on the sink: {number(cell['mass'], '.3f')}")
    interval = ""
    if "delta_low" in cell:
        interval = f" [{number(cell['delta_low'], '+.3f')}, {number(cell['delta_high'], '+.3f')}]"
    lines.append(f"loss without it: {number(cell['delta'], '+.3f')}{interval} nats")
    for key, what in (("norm_ratio", "output norm over the layer's mean"), ("own_ratio", "over its own most")):
        if key in cell:
            lines.append(f"{what}: {number(cell[key])}")
    return "<br>".join(lines)
