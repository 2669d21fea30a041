"""How sink, logit margin, drain, residual peak and loss come about over training steps."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import light_grid, log_axis, log_ticks
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_words
from sinklens.plots.style import (
    CATEGORICAL,
    INK,
    MUTED,
    empty_figure,
    escaped,
    faint,
    float32,
    new_figure,
    require_columns,
)

ALL: Final = "all"
"""The domain that stands for all of them together."""

_TITLE: Final = "Extreme tokens through training"
_STEP_COLUMNS: Final = (
    "step", "domain", "importance_first", "null_first", "sink_head_share", "delta_logit", "drain", "drain_wo",
    "resid_ratio", "max_over_median", "loss",
)  # fmt: skip
_HEAD_COLUMNS: Final = ("step", "domain", "layer", "head", "importance_first", "delta_logit", "drain", "drain_wo")
_BAND: Final = (0.1, 0.9)
_COLUMNS: Final = 3
_HEIGHT: Final = 300
_DRAIN: Final = "Value norm of position 0 / others"
_LOSS: Final = "Loss (nats per token)"

_Panel = tuple[str, bool, list[go.Scatter], list[float]]


@draws(
    "sinklens-dynamics",
    needs={"steps": ("step", "domain"), "heads": ("step", "domain", "layer", "head")},
    whole={"By training step": {}},
)
def dynamics(steps: pd.DataFrame, heads: pd.DataFrame | None = None, *, domain: str | None = None) -> go.Figure:
    """Draw how sinks come about in training: attention to position 0, margin, drain, residual peaks and loss by step.

    The step axis is logarithmic; step 0, which has no place on it, stands apart on its left behind a gap, and lines to
    it are dotted. Lines are means over heads; bands hold the middle 80 % of heads; dashed lines are nulls. What does
    not apply to the model is missing.

    Args:
        steps: A result of `measure_dynamics`, or its table of steps.
        heads: Its table of heads, for the bands; none are drawn without.
        domain: Whose sink figures are drawn; default: all domains together. Losses are drawn for each.

    Raises:
        InputError: A missing column, or several domains, none of all together, and none chosen.

    Source: after the training curves of Guo et al. 2024 (arXiv 2410.13835) and Gu et al. 2025 (arXiv 2410.10781).
    """
    require_columns(steps, _STEP_COLUMNS, "dynamics")
    heads = pd.DataFrame(columns=[*_HEAD_COLUMNS]) if heads is None else heads
    require_columns(heads, _HEAD_COLUMNS, "dynamics")
    if steps.empty:
        return empty_figure(_TITLE, "Not applicable: no checkpoint was measured.")
    chosen = domain or one_domain(steps, "dynamics")
    table = steps[steps["domain"] == chosen].sort_values("step")
    if table.empty:
        return empty_figure(_TITLE, f"Not applicable: nothing was measured on {chosen}.")
    by_head = heads[heads["domain"] == chosen]
    axis = _StepAxis([int(step) for step in table["step"]])
    panels = [panel for panel in _panels(steps, table, by_head, axis) if panel[2]]
    rows = math.ceil(len(panels) / _COLUMNS)
    notes = [f"{len(table)} checkpoints."]
    if chosen != ALL and steps["domain"].nunique() > 1:
        notes.append(f"Texts: {chosen}; losses of each.")
    if len(by_head):
        notes.append("Lines: mean over heads; bands: the middle 80 % of heads; dashed: null.")
    notes.append("Logarithmic steps" + ("; step 0 stands apart." if axis.has_zero else "."))
    fig = new_figure(_TITLE, " ".join(notes), height=rows * _HEIGHT, wrap=150)
    fig.update_layout(meta={"least_width": "page"})
    gap = 0.24 / rows
    side = (1 - gap * (rows - 1)) / rows - 0.06
    for place, (title, log, traces, values) in enumerate(panels):
        number = "" if place == 0 else str(place + 1)
        row, column = divmod(place, _COLUMNS)
        left, top = column / _COLUMNS + (0.035 if column else 0), 1 - 0.06 - row * (side + 0.06 + gap)
        right = (column + 1) / _COLUMNS - 0.015
        fig.update_layout(
            {
                f"xaxis{number}": axis.layout() | light_grid() | {"domain": [left, right], "anchor": f"y{number}"},
                f"yaxis{number}": (log_axis(values) if log else light_grid())
                | {"domain": [max(0.0, top - side), top], "anchor": f"x{number}"},
                f"legend{number}": _legend(title, left, right, top, max(0.0, top - side)),
            }
        )
        add_words(fig, f"<b>{escaped(title)}</b>", left, top, yshift=4, font={"size": 13, "color": INK})
        if axis.has_zero:
            dotted = {"type": "line", "line": {"color": MUTED, "width": 1, "dash": "dot"}}
            place_of = {"x0": axis.gap, "x1": axis.gap, "xref": f"x{number}", "yref": f"y{number} domain"}
            fig.add_shape(y0=0, y1=1, **place_of, **dotted)
        shown = [trace for trace in traces if trace.showlegend is not False]
        for trace in traces:
            trace.update(xaxis=f"x{number}", yaxis=f"y{number}", legend=f"legend{number}")
            if len(shown) == 1:
                trace.showlegend = False
            fig.add_trace(trace)
    return fig


def one_domain(table: pd.DataFrame, function: str) -> str:
    """All domains together where the table has such rows, else the only domain.

    Raises:
        InputError: It has several domains and none stands for all.
    """
    names = [str(name) for name in dict.fromkeys(table["domain"])]
    if ALL in names:
        return ALL
    if len(names) != 1:
        raise InputError(f"{function} draws one domain; choose it with domain=: {', '.join(names)}.")
    return names[0]


def _legend(title: str, left: float, right: float, top: float, bottom: float) -> dict[str, Any]:
    """Inside the panel, where its curves are not: they fall in the panels of drains and losses."""
    place: dict[str, Any] = {"x": left + 0.03, "xanchor": "left", "y": top, "yanchor": "top"}
    if title == _DRAIN:
        place = {"x": left + 0.03, "xanchor": "left", "y": bottom, "yanchor": "bottom"}
    elif title == _LOSS:
        place = {"x": right, "xanchor": "right", "y": 0.18 * bottom + 0.82 * top, "yanchor": "top"}
    return place | {"font": {"size": 12}, "bgcolor": "rgba(255,255,255,0.6)", "tracegroupgap": 0}


class _StepAxis:
    """Positions of steps: their decimal logarithm, and step 0 apart on the left."""

    def __init__(self, steps: Sequence[int]) -> None:
        positive = [step for step in steps if step > 0]
        self.has_zero = len(positive) < len(steps)
        self.low = math.log10(min(positive)) if positive else 0.0
        self.high = math.log10(max(positive)) if positive else 0.0
        self.zero = self.low - max(0.25, 0.14 * (self.high - self.low))
        self.gap = (self.zero + self.low) / 2

    def at(self, steps: Any) -> "np.ndarray[Any, np.dtype[np.float32]]":
        return float32([math.log10(step) if step > 0 else self.zero for step in steps])

    def layout(self) -> dict[str, Any]:
        values, texts = log_ticks(10**self.low, 10 ** max(self.high, self.low + 0.3))
        ticks = [math.log10(value) for value in values]
        shown = [(tick, text) for tick, text in zip(ticks, texts, strict=True) if tick <= self.high + 0.02]
        if self.has_zero:
            shown = [(self.zero, "0"), *shown]
        room = 0.05 * max(0.3, self.high - self.low)
        return {
            "tickmode": "array",
            "tickvals": [tick for tick, _ in shown],
            "ticktext": [text for _, text in shown],
            "range": [(self.zero if self.has_zero else self.low) - room, self.high + room],
            "title": {"text": "training step"},
        }


def _panels(steps: pd.DataFrame, table: pd.DataFrame, heads: pd.DataFrame, axis: _StepAxis) -> list[_Panel]:
    blue, red, green = CATEGORICAL[0], CATEGORICAL[1], CATEGORICAL[2]
    attention = [
        *_band(heads, "importance_first", blue, axis),
        *_line(table, "importance_first", "attention to position 0, mean", blue, axis),
        *_line(table, "importance_first_max", "strongest head", CATEGORICAL[5], axis),
        *_line(table, "sink_head_share", "share of heads with a sink", red, axis, symbol="square"),
        *_line(table, "null_first", "uniform attention", MUTED, axis, dash="dash"),
    ]
    margin = [*_band(heads, "delta_logit", blue, axis), *_line(table, "delta_logit", "logit margin", blue, axis)]
    drain: list[go.Scatter] = []
    if table["drain"].notna().any():
        drain = [
            *_band(heads, "drain_wo", red, axis),
            *_line(table, "drain", "|v|", blue, axis),
            *_line(table, "drain_wo", "|W_O v|", red, axis, symbol="square"),
            *_line(table.assign(equal=1.0), "equal", "as the others", MUTED, axis, dash="dash"),
        ]
    peak = _line(table, "max_over_median", "max / median of |h|", green, axis)
    norm = _line(table, "resid_ratio", "residual norm ratio", green, axis)
    losses = []
    several = [name for name in dict.fromkeys(steps["domain"]) if name != ALL] or [ALL]
    for name, colour in zip(several, CATEGORICAL * len(several), strict=False):
        rows = steps[steps["domain"] == name].sort_values("step")
        losses += _line(rows, "loss", f"loss: {name}" if len(several) > 1 else "loss", colour, axis)
    losses += _line(table, "loss_uniform", "guessing", MUTED, axis, dash="dash")
    return [
        ("Attention to position 0", False, attention, []),
        ("Logit margin of position 0", False, margin, []),
        (_DRAIN, False, drain, []),
        ("Largest |h| / median (highest layer)", True, peak, _values(table, "max_over_median")),
        ("Residual norm of position 0 / others", False, norm, []),
        (_LOSS, False, losses, []),
    ]


def _values(table: pd.DataFrame, column: str) -> list[float]:
    return [float(value) for value in table[column]]


def _line(
    table: pd.DataFrame, column: str, name: str, colour: str, axis: _StepAxis, *, symbol: str = "circle", dash: str = ""
) -> list[go.Scatter]:
    """A line over positive steps, and a dotted one to step 0; nothing where nothing applies."""
    if column not in table or table[column].isna().all():
        return []
    rows = table.dropna(subset=[column])
    steps = [int(step) for step in rows["step"]]
    texts = [f"step {step:,}" for step in steps]
    positive = [place for place, step in enumerate(steps) if step > 0]
    look: dict[str, Any] = {
        "name": escaped(name),
        "legendgroup": name,
        "mode": "lines" if dash else "lines+markers",
        "marker": {"symbol": symbol, "size": 6},
        "hovertemplate": f"%{{text}}<br>{escaped(name)}: %{{y:.4g}}<extra></extra>",
    }
    x, y = axis.at(steps), float32(rows[column])
    line = {"color": colour, "width": 1.5 if dash else 2, "dash": dash or "solid"}
    traces = [
        go.Scatter(
            x=x[positive], y=y[positive], text=[texts[i] for i in positive], line=line, marker_color=colour, **look
        )
    ]
    if len(positive) < len(steps):
        traces.append(
            go.Scatter(
                x=x[:2], y=y[:2], text=texts[:2], showlegend=not positive, marker_color=colour,
                line={"color": colour, "width": 1.2, "dash": "dot"}, **look,
            )
        )  # fmt: skip
    return traces


def _band(heads: pd.DataFrame, column: str, colour: str, axis: _StepAxis) -> list[go.Scatter]:
    """The middle 80 % of heads at every step; step 0 is joined to it by the same area."""
    rows = heads.dropna(subset=[column])
    if rows.empty or len(rows[["layer", "head"]].drop_duplicates()) < 2:
        return []
    ends = rows.groupby("step")[column].quantile(np.array(_BAND)).unstack()
    x = axis.at(ends.index)
    return [
        go.Scatter(
            x=np.concatenate([x, x[::-1]]),
            y=float32(np.concatenate([ends[_BAND[0]].to_numpy(), ends[_BAND[1]].to_numpy()[::-1]])),
            fill="toself",
            fillcolor=faint(colour, 0.15),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
        )
    ]
