"""Classes of tokens: what part of a table they are, and what a value of them is, beside what chance gives."""

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import named_axis, value_axis
from sinklens.plots.draws import draws, one_row_each
from sinklens.plots.marks import add_bars, add_marks, add_words, room_above
from sinklens.plots.style import (
    CATEGORICAL,
    MUTED,
    empty_figure,
    escaped,
    float32,
    new_figure,
    number,
    require_columns,
    token_label,
)

_TITLE: Final = "Tokens by class"


@draws(needs={"classes": ()}, made_by={"classes": "by_class(table, token_classes(batch))"})
def token_classes(classes: pd.DataFrame, *, value: str | None = None, limit: int = 20) -> go.Figure:
    """Draw, for each class of tokens, its share of the table's rows beside its share of all tokens, and a mean.

    Left: bar, share of the rows; line, share of all tokens (the null). Right, with `value`: its mean over sequences
    with one standard deviation, and lines where even attention would put it (with and without a wall between
    documents).

    Args:
        classes: What :func:`~sinklens.detectors.token_classes.by_class` gives.
        value: One of its means, such as `importance`; None draws the shares alone.
        limit: Most classes drawn: those with the most rows.

    Raises:
        InputError: A missing column.
    """
    require_columns(classes, ("n_tokens", "token_share", "n_rows", "row_share"), "token_classes")
    by = [*classes.columns[: [*classes.columns].index("n_tokens")]]
    if not by:
        raise InputError("token_classes draws what by_class() gives: columns of a class before n_tokens.")
    one_row_each(classes, tuple(by), "token_classes")
    if value is not None:
        require_columns(classes, (value, f"{value}_sd"), "token_classes")
    if classes.empty:
        return empty_figure(_TITLE, "Not applicable: there are no tokens.")
    drawn = classes.sort_values("n_rows", ascending=False, kind="stable").head(limit)
    note = "Bar: share of the rows; line: share of all tokens (the null). In brackets: rows of all tokens."
    note += f" {len(drawn)} of {len(classes)} classes." if len(drawn) < len(classes) else ""
    fig = new_figure(_TITLE, note, height=max(160, 28 * len(drawn)))
    places = np.arange(len(drawn))
    labels = [_name([record[name] for name in by]) for record in drawn.to_dict("records")]
    x, hover = float32(drawn["row_share"]), "%{text}<br>%{x:.1%} of the rows"
    add_bars(fig, x, places, "share of the rows", CATEGORICAL[0], hover=hover, orientation="h", text=labels)
    _lines(fig, drawn["token_share"], places, "share of all tokens", MUTED, "x")
    wide = {} if value is None else {"domain": [0, 0.46]}
    if value is not None:
        text = [f"{label}<br>{escaped(value)} {number(each)}" for label, each in zip(labels, drawn[value], strict=True)]
        bars = {"array": float32(drawn[f"{value}_sd"].fillna(0)), "width": 5, "thickness": 1.6}
        marker = {"size": 9, "color": CATEGORICAL[1]}
        x = float32(drawn[value])
        add_marks(fig, x, places, escaped(value), marker, hover="%{text}", xaxis="x2", error_x=bars, text=text)
        for null, colour in (("null", MUTED), ("null_document", CATEGORICAL[3])):
            if null in drawn:
                _lines(fig, drawn[null], places, f"even attention ({null})", colour, "x2")
        add_words(fig, f"<b>{escaped(value)}</b>", 0.54, 1)
        room_above(fig)
        fig.update_layout(xaxis2=value_axis(escaped(value), domain=[0.54, 1]))
    rows = [
        f"{label} ({rows:,} of {of:,})"
        for label, rows, of in zip(labels, drawn["n_rows"], drawn["n_tokens"], strict=True)
    ]
    fig.update_layout(xaxis=value_axis("share", **wide), yaxis=named_axis(rows, down=True), showlegend=False)
    return fig


def _name(parts: list[Any]) -> str:
    return ", ".join("none" if part is None or pd.isna(part) else token_label(str(part), 20) for part in parts)


def _lines(fig: go.Figure, x: pd.Series, y: np.ndarray, name: str, colour: str, axis: str) -> None:
    marker = {"symbol": "line-ns-open", "size": 18, "color": colour, "line": {"width": 2.5, "color": colour}}
    add_marks(fig, float32(x), y, name, marker, hover=f"{name}: %{{x:.3g}}", xaxis=axis)
