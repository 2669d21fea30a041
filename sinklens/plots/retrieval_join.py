"""Retrieval score against sink importance, one mark a head, coloured by its induction score."""

from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_marks
from sinklens.plots.style import (
    INK,
    SEQUENTIAL,
    colorbar,
    empty_figure,
    float32,
    head_label,
    new_figure,
    number,
    require_columns,
)

_TITLE: Final = "Retrieval, sink and induction scores of the same heads"
NAMED: Final = 8


@draws("sinklens-roles", needs={"heads": ("layer", "head")}, whole={_TITLE: {}})
def retrieval_join(heads: pd.DataFrame) -> go.Figure:
    """Draw every head by how much it rests on its sink in text and how much of a needle it copies.

    The colour is the induction score on repeated random tokens; the strongest retrieval heads are named. Retrieval
    heads at the right rest on their sink in ordinary text: they work only where there is something to copy.

    Args:
        heads: Roles, what ``Roles.retrieval_join()`` gives, or its ``heads``: `layer`, `head`, `retrieval`,
            `importance`, `induction` and their `rank_` columns, which are made where they are missing.

    Raises:
        InputError: A missing column.
    """
    scores = ("retrieval", "importance", "induction")
    if not any(f"rank_{name}" in heads for name in scores):
        from sinklens.studies.head_roles.retrieval_join import retrieval_join as join

        joined = join(heads)
        if joined is None:
            missing = ", ".join(name for name in scores if name not in heads or heads[name].isna().all())
            return empty_figure(_TITLE, f"Not measured: {missing}; find_roles measures them when asked for.")
        heads = joined.heads
    require_columns(heads, ("layer", "head", *scores, *(f"rank_{name}" for name in scores)), "retrieval_join")
    if heads.empty:
        return empty_figure(_TITLE, "Not applicable: no head has all three scores.")
    records = heads.sort_values("rank_retrieval").to_dict("records")
    notes = f"{len(heads):,} heads. Colour: induction score. Named: retrieval heads (0.1 or more), at most {NAMED}."
    fig = new_figure(_TITLE, notes, height=420)
    marker = {
        "size": 9,
        "color": float32([record["induction"] for record in records]),
        "colorscale": SEQUENTIAL,
        "cmin": 0,
        "cmax": 1,
        "colorbar": colorbar("induction"),
        "line": {"width": 0.8, "color": INK},
    }
    x = float32([record["importance"] for record in records])
    text = [_hover(record, len(records)) for record in records]
    y = float32([record["retrieval"] for record in records])
    add_marks(fig, x, y, "heads", marker, hover="%{text}", text=text, showlegend=False)
    named = [record for record in records if record["retrieval"] >= 0.1][:NAMED]
    for group in _together(named, float(heads["retrieval"].max())):
        first = min(group, key=lambda record: record["importance"])
        left = first["importance"] > 0.4  # where a list of names has room
        edge = first if left else max(group, key=lambda record: record["importance"])
        fig.add_annotation(
            x=edge["importance"], y=first["retrieval"], showarrow=False, font={"size": 12, "color": INK},
            text=", ".join(head_label(int(record["layer"]), int(record["head"])) for record in group),
            xanchor="right" if left else "left", xshift=-8 if left else 8,
        )  # fmt: skip
    fig.update_layout(
        xaxis=value_axis("sink importance on text (attention on the strongest key)", range=[-0.02, 1.05]),
        yaxis=value_axis("retrieval score"),
    )
    return fig


def _together(records: list[dict[Any, Any]], top: float) -> list[list[dict[Any, Any]]]:
    """Marks whose names would overlap, the strongest first."""
    groups: list[list[dict[Any, Any]]] = []
    for record in records:
        near = (
            group
            for group in groups
            if abs(group[0]["importance"] - record["importance"]) < 0.1
            and abs(group[0]["retrieval"] - record["retrieval"]) < 0.06 * top
        )
        found = next(near, None)
        if found is None:
            groups.append([record])
        else:
            found.append(record)
    return groups


def _hover(record: dict[Any, Any], count: int) -> str:
    lines = [f"<b>{head_label(int(record['layer']), int(record['head']))}</b>"]
    lines += [
        f"{name}: {number(record[name], '.3f')} (rank {record[f'rank_{name}']:g} of {count})"
        for name in ("retrieval", "importance", "induction")
    ]
    return "<br>".join(lines)
