"""Task scores under interventions, beside the unchanged model and random controls."""

from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import named_axis
from sinklens.plots.draws import draws
from sinklens.plots.style import CATEGORICAL, empty_figure, escaped, new_figure, number, require_columns

_TITLE: Final = "Task scores"
_NOTE: Final = "Bars: 95 % interval of the difference from the unchanged model, over the same documents."
_COLUMNS: Final = ("condition", "kind", "of", "task", "metric", "n", "value", "delta", "delta_low", "delta_high")
CHANGED: Final = "changed, 95 % interval"
UNCHANGED: Final = "unchanged"
CONTROLS: Final = "random controls of equal budget"


@draws(
    "sinklens-task-scores",
    needs={"scores": ("condition", "task", "metric")},
    whole={"Task scores": {}},
)
def task_scores(scores: pd.DataFrame, *, metric: str | None = None) -> go.Figure:
    """Draw every task's score as the model is, under each change, and under the change's random controls.

    A row for each task and change: an upright line where the unchanged model stands, a mark with the paired interval
    around the change's own score, and an open mark for each control. A change that matters stands off the line, and its
    controls do not.

    Args:
        scores: An evaluation, or its table `scores`: condition, kind, of, task, metric, n, value, delta with its
            interval.
        metric: Of the harness, such as `acc_norm`; default: the first of each task.

    Raises:
        InputError: A missing column.
    """
    require_columns(scores, _COLUMNS, "task_scores")
    first = scores.groupby("task", sort=False)["metric"].transform("first")
    table = scores[scores["metric"] == (first if metric is None else metric)]
    if table.empty:
        return empty_figure(_TITLE, f"Not applicable: no task has the metric {metric}.")
    rows = [row for _, own in table.groupby("task", sort=False) for row in _rows(own)]
    clean = [{**base, "at": at} for at, (base, _, _) in enumerate(rows)]
    changed = [{**change, "at": at} for at, (_, change, _) in enumerate(rows) if change is not None]
    controls = [{**row, "at": at} for at, (_, _, drawn) in enumerate(rows) for row in drawn]
    fig = new_figure(_TITLE, _NOTE, height=150 + 34 * len(rows))
    up = [row["delta_high"] - row["delta"] for row in changed]
    down = [row["delta"] - row["delta_low"] for row in changed]
    bars = {"type": "data", "array": up, "arrayminus": down, "width": 4, "thickness": 1.2}
    marks: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        UNCHANGED: (clean, {"symbol": "line-ns", "size": 18, "line": {"width": 2, "color": "#555"}}),
        CONTROLS: (controls, {"symbol": "diamond-open", "size": 8, "color": CATEGORICAL[1]}),
        CHANGED: (changed, {"symbol": "circle", "size": 9, "color": CATEGORICAL[0]}),
    }
    for name, (held, marker) in marks.items():
        if held:
            fig.add_scatter(
                x=[row["value"] for row in held],
                y=[row["at"] for row in held],
                error_x=bars if name == CHANGED else None,
                mode="markers",
                name=name,
                marker=marker,
                hovertext=[_hover(row) for row in held],
                hoverinfo="text",
            )
    labels = [_label(base, base if change is None else change) for base, change, _ in rows]
    fig.update_layout(yaxis=named_axis(labels, down=True), showlegend=True)
    fig.update_xaxes(title="score (mean over documents)")
    return fig


def _rows(own: pd.DataFrame) -> list[tuple[dict[Any, Any], dict[Any, Any] | None, list[dict[Any, Any]]]]:
    """Of one task: the unchanged model with each change and its controls, or alone."""
    clean = own[own["kind"] == "unchanged"].iloc[0].to_dict()
    changes = own[own["kind"] == "change"].to_dict("records")
    drawn = own[own["kind"] == "control"]
    return [(clean, row, drawn[drawn["of"] == row["condition"]].to_dict("records")) for row in changes] or [
        (clean, None, [])
    ]


def _label(clean: dict[Any, Any], row: dict[Any, Any]) -> str:
    return f"{escaped(str(row['condition']))}<br>{escaped(str(clean['task']))}, {escaped(str(clean['metric']))}"


def _hover(row: dict[Any, Any]) -> str:
    change = number(row["delta"], "+.3f")
    interval = f" [{number(row['delta_low'], '+.3f')}, {number(row['delta_high'], '+.3f')}]"
    return (
        f"<b>{escaped(str(row['condition']))}</b> on {escaped(str(row['task']))}<br>{escaped(str(row['metric']))} "
        f"{number(row['value'], '.3f')} over {row['n']} documents<br>difference {change}{interval}"
    )
