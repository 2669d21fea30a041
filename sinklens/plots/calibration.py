"""What a calibration did to the answers: accuracy, valid answers, and accuracy among the valid ones."""

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import named_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_marks, error_bars
from sinklens.plots.style import (
    BELOW,
    CATEGORICAL,
    MUTED,
    empty_figure,
    escaped,
    float32,
    new_figure,
    number,
    require_columns,
)
from sinklens.wording import several

_TITLE: Final = "Answers on held-out prompts, unchanged and tuned"
_RATES: Final = {
    "accuracy": "accuracy",
    "valid_rate": "valid answers",
    "accuracy_given_valid": "accuracy among valid answers",
}


@draws("sinklens-calibration", needs={"summary": ("variant",)})
def calibration(summary: pd.DataFrame) -> go.Figure:
    """Draw how often answers are right and valid: of the model, of the tuned one, and with random heads changed.

    Accuracy is the product of the other two: a gain that stands in the middle row alone is one of form. Bars are 95 %
    intervals over prompts, each by itself; whether a change is beyond chance is in the result's paired interval. Every
    small point is one set of random heads. A rate that does not exist (no valid answer) is not drawn.

    Args:
        summary: A calibration, or what its `summary()` gives: variant, accuracy, valid_rate, accuracy_given_valid with
            `_low` and `_high`, n.

    Raises:
        InputError: A missing column.
    """
    needed = [f"{name}{end}" for name in _RATES for end in ("", "_low", "_high")]
    require_columns(summary, ("variant", "n", *needed), "calibration")
    if summary.empty:
        return empty_figure(_TITLE, "Not applicable: nothing was reported.")
    if "heads" in summary.columns:
        # a tuned variant without heads is the unchanged model again
        summary = summary[(summary["variant"] != "tuned") | (summary["heads"] != "")]
    random = summary[~summary["variant"].isin(["unchanged", "tuned"])]
    prompts = int(summary["n"].iloc[0])
    notes = [f"{prompts} prompts that nothing was chosen on; bars: 95 % intervals over prompts (Wilson)."]
    if not (summary["variant"] == "tuned").any():
        notes.append("Nothing was chosen, so only the unchanged model is drawn.")
    elif len(random):
        notes.append(f"Grey: {several(len(random), 'set')} of as many random heads.")
    else:
        notes.append("There are no random heads to compare with.")
    fig = new_figure(_TITLE, " ".join(notes), height=260)
    rows = np.arange(len(_RATES), dtype=float)
    if len(random):
        text = [f"{escaped(str(name))}" for name in random["variant"] for _ in _RATES]
        x = float32(random[[*_RATES]].to_numpy(dtype=float).ravel())
        marker = {"size": 6, "color": MUTED, "opacity": 0.45}
        y = float32(np.tile(rows, len(random)))
        add_marks(fig, x, y, "random heads", marker, hover="%{text}: %{x:.3f}", text=text)
    for variant, colour, shift in (("unchanged", CATEGORICAL[0], -0.18), ("tuned", CATEGORICAL[1], 0.18)):
        for record in summary[summary["variant"] == variant].to_dict("records"):
            _add_points(fig, record, variant, colour, rows + shift)
    fig.update_layout(
        xaxis=value_axis("share of prompts (the last row: of valid answers)", range=[-0.02, 1.02]),
        yaxis=named_axis(_RATES.values(), down=True),
        legend=BELOW,
        margin={"b": 88},
    )
    return fig


def _add_points(fig: go.Figure, record: dict[Any, Any], variant: str, colour: str, y: Any) -> None:
    value, low, high = (np.array([float(record[f"{name}{end}"]) for name in _RATES]) for end in ("", "_low", "_high"))
    ends = zip(value, low, high, strict=True)
    text = [f"{number(v, '.3f')} [{number(a, '.3f')}, {number(b, '.3f')}]" for v, a, b in ends]
    bars = error_bars(value, low, high, width=4, thickness=1.4)
    named, marker, hover = f"{variant}, 95 % interval", {"size": 10, "color": colour}, f"{variant}: %{{text}}"
    add_marks(fig, float32(value), float32(y), named, marker, hover=hover, error_x=bars, text=text)
