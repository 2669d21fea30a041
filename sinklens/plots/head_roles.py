"""Scores and labels of all heads by every criterion, over the matrix of how far the criteria agree."""

import math
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import named_axis, thinned
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_cells, add_marks
from sinklens.plots.style import (
    INK,
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

TITLE: Final = "Roles of attention heads by criterion"
MANY: Final = 256
ROW: Final = 26
GAP: Final = 150

Shown = Literal["auto", "all", "labelled"]


@draws(
    "sinklens-roles",
    needs={"heads": ("layer", "head"), "criteria": ("criterion",), "agreement": ("first", "second")},
    whole={"Scores, labels and their agreement": {}},
)
def head_roles(
    heads: pd.DataFrame,
    criteria: pd.DataFrame | None = None,
    agreement: pd.DataFrame | None = None,
    *,
    show: Shown = "auto",
) -> go.Figure:
    """Draw every head's scores by several published criteria, its labels marked, and below how far criteria agree.

    Above: each row is one score, coloured from its smallest to its largest value over all heads (units differ, so rows
    do not compare; the hover has the value). A diamond marks a labelled head. A cell is grey where the score does not
    apply. Below: the colour is Spearman's rank correlation over heads; the text is that number below the diagonal and,
    above it, the Jaccard index of the labelled heads with its chance level in brackets. Grey: no such number.

    Args:
        heads: A result of ``roles``, or its table: `layer`, `head`, the scores and their `is_<role>` labels.
        criteria: Its criteria, where `heads` is a table: `criterion`, `role`, `rule`, in the order of the rows.
        agreement: Its agreement, where `heads` is a table: `first`, `second`, `unit`, `n`, `spearman`, `jaccard`,
            `jaccard_chance`, ...
        show: `"all"` heads, only those with a label (`"labelled"`), or `"auto"`: only those beyond 256 heads.

    Raises:
        InputError: A missing table or column, or an unknown `show`.
    """
    if criteria is None or agreement is None:
        raise InputError("head_roles draws three tables; pass the result itself, or heads, criteria and agreement.")
    require_columns(criteria, ("criterion", "role", "rule"), "head_roles")
    rows = criteria.to_dict("records")
    labels = [f"is_{row['role']}" if isinstance(row["role"], str) else None for row in rows]
    require_columns(heads, ("layer", "head", *(row["criterion"] for row in rows), *filter(None, labels)), "head_roles")
    pairs = ("first", "second", "unit", "n", "spearman", "spearman_low", "spearman_high", "jaccard", "jaccard_chance")
    require_columns(agreement, (*pairs, "n_both", "p"), "head_roles")
    if show not in ("auto", "all", "labelled"):
        raise InputError(f'show must be "auto", "all" or "labelled", got {show!r}.')
    if not rows or heads.empty:
        return empty_figure(TITLE, "Not applicable: no head of this model has a score.")
    marked = np.array([_labels(heads, label) for label in labels])
    chosen: Any = np.ones(len(heads), dtype=bool)
    if show == "labelled" or (show == "auto" and len(heads) > MANY):
        chosen = marked.any(0)
    if not chosen.any():
        return empty_figure(TITLE, "No head has a label by any of these criteria.")
    scores = np.array([heads[row["criterion"]].to_numpy(dtype=float, na_value=np.nan) for row in rows])
    upper, lower = ROW * len(rows) + 20, max(200, 40 * len(rows))
    height = upper + GAP + lower
    fig = new_figure(TITLE, _notes(len(heads), chosen, scores, rows), height=height)
    names = [str(row["criterion"]) for row in rows]
    _add_scores(fig, heads, rows, scores, marked, chosen)
    _add_agreement(fig, names, agreement)
    across, down = named_axis(map(escaped, names)), named_axis(map(escaped, names), down=True)
    index = np.flatnonzero(chosen)
    drawn = [int(index[place]) for place in thinned(len(index), 48)]
    shown = [head_label(int(heads["layer"].iloc[at]), int(heads["head"].iloc[at])) for at in drawn]
    side = min(1.0, max(0.3, 0.09 * len(names)))
    fig.update_layout(
        xaxis=named_axis(shown, tickvals=thinned(len(index), 48), title={"text": "head, by layer"})
        | {"anchor": "y", "range": [-0.5, len(index) - 0.5], "tickangle": -90},
        yaxis=down | {"domain": [1 - upper / height, 1], "anchor": "x"},
        xaxis2=across | {"domain": [0, side], "anchor": "y2", "tickangle": -45},
        yaxis2=down | {"domain": [0, lower / height], "anchor": "x2"},
    )
    return fig


def _labels(heads: pd.DataFrame, label: str | None) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    if label is None:
        return np.zeros(len(heads), dtype=bool)
    found: np.ndarray[Any, np.dtype[np.bool_]] = heads[label].astype("boolean").fillna(False).to_numpy(dtype=bool)
    return found


def _notes(total: int, chosen: Any, scores: Any, rows: list[dict[Any, Any]]) -> str:
    notes = ["Above: each row from its smallest score (dark) to its largest; diamond = labelled by the row's rule."]
    if not chosen.all():
        notes.append(f"Only the {int(chosen.sum()):,} heads with a label are drawn, of {total:,}.")
    empty = [str(row["criterion"]) for row, values in zip(rows, scores, strict=True) if np.isnan(values).all()]
    if empty:
        notes.append(f"Grey rows: not applicable ({', '.join(empty)}).")
    missing = int(np.isnan(scores[:, chosen]).sum()) - len(empty) * int(chosen.sum())
    if missing:
        notes.append(f"Grey cells ({missing}): not applicable.")
    notes.append(
        "Below: Spearman's rank correlation (colour, and number under the diagonal); over it the Jaccard index of the "
        "labelled heads (by chance)."
    )
    return " ".join(notes)


def _add_scores(fig: go.Figure, heads: pd.DataFrame, rows: Any, scores: Any, marked: Any, chosen: Any) -> None:
    coloured = np.full(scores.shape, np.nan)
    for place, values in enumerate(scores):
        known = values[~np.isnan(values)]
        if len(known):
            spread = known.max() - known.min()
            coloured[place] = (values - known.min()) / spread if spread > 0 else np.where(np.isnan(values), np.nan, 0)
    names = [head_label(int(a), int(b)) for a, b in zip(heads["layer"], heads["head"], strict=True)]
    texts = [
        [_hover(names[at], row, scores[place, at], marked[place, at]) for at in np.flatnonzero(chosen)]
        for place, row in enumerate(rows)
    ]
    bar = colorbar("score, within its row", tickvals=[0, 1], ticktext=["lowest", "highest"])
    bar |= {"y": 1, "yanchor": "top", "len": max(120, ROW * len(rows)), "lenmode": "pixels"}
    gap = 1 if chosen.sum() <= MANY else 0
    look = {"zmin": 0, "zmax": 1, "colorscale": SEQUENTIAL, "colorbar": bar}
    add_cells(fig, coloured[:, chosen], texts, xgap=gap, name="scores", **look)
    places = np.argwhere(marked[:, chosen])
    marker = {
        "symbol": "diamond",
        "size": 7 if chosen.sum() <= 64 else 5,
        "color": "white",
        "line": {"color": INK, "width": 1.2},
    }
    add_marks(fig, places[:, 1], places[:, 0], "labelled", marker, showlegend=False)


def _hover(name: str, row: dict[Any, Any], value: float, marked: bool) -> str:
    lines = [f"<b>{name}</b>", f"{escaped(str(row['criterion']))}: {number(float(value))}"]
    if marked:
        lines.append(f"labelled {escaped(str(row['role']))}: {escaped(str(row['rule']))}")
    return "<br>".join(lines)


def _add_agreement(fig: go.Figure, names: list[str], agreement: pd.DataFrame) -> None:
    place = {name: index for index, name in enumerate(names)}
    z = np.full((len(names), len(names)), np.nan)
    words = np.full(z.shape, "", dtype=object)
    hover = np.full(z.shape, "", dtype=object)
    for row in agreement.to_dict("records"):
        if row["first"] not in place or row["second"] not in place:
            continue
        above, left = sorted((place[row["first"]], place[row["second"]]))
        z[above, left] = z[left, above] = row["spearman"]
        words[left, above] = "" if math.isnan(row["spearman"]) else f"{row['spearman']:.2f}"
        if not math.isnan(row["jaccard"]):
            words[above, left] = f"{row['jaccard']:.2f}<br>({row['jaccard_chance']:.2f})"
        hover[above, left] = hover[left, above] = _pair(row)
    words_look = {
        "text": words.tolist(),
        "texttemplate": "%{text}" if len(names) <= 14 else None,
        "textfont": {"size": 12},
    }
    words_look |= {"customdata": hover.tolist(), "hovertemplate": "%{customdata}<extra></extra>"}
    bar = colorbar("rank correlation") | {"y": 0, "yanchor": "bottom", "len": 180, "lenmode": "pixels"}
    add_cells(fig, z, xaxis="x2", yaxis="y2", name="agreement", colorbar=bar, **words_look, **signed_colours(1))


def _pair(row: dict[Any, Any]) -> str:
    what = "KV heads" if row["unit"] == "kv_head" else "heads"
    lines = [
        f"<b>{escaped(str(row['first']))} and {escaped(str(row['second']))}</b>, {row['n']} {what}",
        f"Spearman {number(row['spearman'])} [{number(row['spearman_low'])}, {number(row['spearman_high'])}]",
        f"Jaccard of labelled {number(row['jaccard'])}, by chance {number(row['jaccard_chance'])}",
        f"labelled by both: {number(row['n_both'])}, p = {number(row['p'], '.2g')}",
    ]
    return "<br>".join(lines)
