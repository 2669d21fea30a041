"""A handful of interventions: what they change, the interval, and what as many random heads or entries change."""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import named_axis, value_axis
from sinklens.plots.draws import SWEEP, draws
from sinklens.plots.effects import EFFECTS, VARIANT, EffectMetric, as_float, with_interval
from sinklens.plots.marks import add_marks, add_words, error_bars
from sinklens.plots.style import CATEGORICAL, MUTED, empty_figure, escaped, float32, new_figure, number, require_columns
from sinklens.wording import are, several

_TITLE: Final = "Before and after each intervention"
_SPLIT: Final = 0.38
_ROW: Final = 38
_LABEL: Final = 26
_BEFORE: Final[dict[str, tuple[str, str, str]]] = {
    "delta_loss": ("clean_loss", "loss", "loss, nats"),
    "delta_logit_diff": ("clean_logit_diff", "logit_diff", "logit difference"),
}


@draws(
    SWEEP,
    "sinklens-effects",
    needs={"summary": VARIANT, "effects": (*VARIANT, "sequence")},
    wants=("effects",),
    whole={_TITLE: {}},
)
def before_after(
    summary: pd.DataFrame,
    *,
    effects: pd.DataFrame | None = None,
    metric: EffectMetric = "delta_loss",
    perplexity: bool = False,
    rows: int = 40,
) -> go.Figure:
    """Draw one row per intervention: its effect with the 95 % interval, its control, and the numbers beside them.

    On the left, the effect as a point with its interval (over sequences); below it in grey the controls' mean +- one
    standard deviation (over draws). An effect that its controls share is no effect of what was chosen. On the right,
    the level before and after, the effect, the controls and the rank of the effect among itself and its controls
    (1 = largest). "n/a" is written where there is no such number, and nothing is drawn there.

    Args:
        summary: Effects, a sweep, or one row per intervention in the order drawn; needs `intervention`,
            the metric and its bounds (`delta_loss_low`, `delta_loss_high`). Used when present: `variant`, `clean_loss`
            and `loss` (or `clean_logit_diff`, `logit_diff`), and, for the loss, `control_mean`, `control_sd`,
            `control_n`, `control_rank`.
        effects: Effects or their table by sequence, from which means before and after are taken when `summary` has
            none.
        metric: Effect to draw.
        perplexity: Write before and after as perplexities, exp of the mean loss.
        rows: Most rows drawn; the subtitle says how many are left out.

    Raises:
        InputError: An unknown metric, `perplexity` for another metric than the loss, or a missing column.
    """
    if metric not in EFFECTS:
        raise InputError(f"before_after can draw {', '.join(EFFECTS)}, not {metric!r}.")
    if perplexity and metric != "delta_loss":
        raise InputError(f"A perplexity belongs to the loss, not to {metric}; leave perplexity out.")
    bounds = (f"{metric}_low", f"{metric}_high")
    require_columns(summary, ("intervention", metric, *bounds), "before_after")
    table = summary.dropna(subset=[metric])
    without = len(summary) - len(table)
    if table.empty:
        return empty_figure(_TITLE, f"Not applicable: no intervention has a value for {metric}.")
    left_out, table = max(0, len(table) - rows), _with_levels(table.head(rows), effects, metric)
    look = EFFECTS[metric]
    notes = [look.note]
    controlled = metric == "delta_loss" and "control_mean" in table.columns
    if controlled:
        notes.append("Grey: controls of the same budget, mean ± one standard deviation over draws.")
    if without:
        notes.append(f"Not applicable and not drawn: {several(without, 'row')}.")
    if left_out:
        notes.append(f"{several(left_out, 'more row')} {are(left_out)} not drawn.")
    fig = new_figure(_TITLE, " ".join(notes), height=_ROW * (len(table) + 1) + 10, wrap=115)
    y = np.arange(len(table), dtype=float)
    if controlled:
        _add_controls(fig, table, y)
    value, low, high = (table[column].to_numpy(dtype=float) for column in (metric, *bounds))
    labels = _labels(table)
    text = [
        f"{label}<br>{look.short}: {with_interval(r, metric)}"
        for label, r in zip(labels, table.to_dict("records"), strict=True)
    ]
    named = "effect, 95 % interval" if np.isfinite(low).any() else "effect (no interval)"
    bars = error_bars(value, low, high, width=5, thickness=1.6)
    marker = {"size": 9, "color": CATEGORICAL[0]}
    add_marks(fig, float32(value), float32(y - 0.12), named, marker, hover="%{text}", error_x=bars, text=text)
    if look.signed:
        fig.add_vline(x=0, line={"color": MUTED, "width": 1})
    fig.update_layout(
        xaxis=value_axis(look.unit, domain=[0, _SPLIT], nticks=6),
        yaxis=named_axis(labels, range=[len(table) - 0.4, -1.2], showgrid=False, showline=False, ticks=""),
        showlegend=False,
        meta={"least_width": "page"},
    )
    _add_columns(fig, _columns(table, metric, perplexity, controlled))
    return fig


def _add_controls(fig: go.Figure, table: pd.DataFrame, y: Any) -> None:
    """The controls' mean and spread, a little below the effect; nothing where there is none."""
    mean = table["control_mean"].to_numpy(dtype=float, na_value=np.nan)
    spread = np.full_like(mean, np.nan)
    if "control_sd" in table.columns:
        spread = table["control_sd"].to_numpy(dtype=float, na_value=np.nan)
    shown = ~np.isnan(mean)
    bars = {"array": float32(spread[shown]), "width": 0, "thickness": 7, "color": "#c3cad2"}
    marker = {"size": 8, "symbol": "square", "color": MUTED}
    text = [number(x) for x in mean[shown]]
    places = float32(y[shown] + 0.2)
    named = "controls, mean ± sd"
    add_marks(fig, float32(mean[shown]), places, named, marker, hover="controls: mean %{text}", error_x=bars, text=text)


def _columns(
    table: pd.DataFrame, metric: EffectMetric, perplexity: bool, controlled: bool
) -> list[tuple[str, list[str]]]:
    """Heads and cells of the numbers beside the picture."""
    found: list[tuple[str, list[str]]] = []
    spec = _decimals(table, metric)

    def add(head: str, cell: Callable[[dict[Any, Any]], str]) -> None:
        found.append((head, [cell(record) for record in table.to_dict("records")]))

    if metric in _BEFORE:
        before, after, unit = _BEFORE[metric]
        if {before, after} <= {*table.columns}:
            unit = "perplexity" if perplexity else unit
            add(f"before,<br>{unit}", lambda r: _level(r[before], perplexity))
            add("after", lambda r: _level(r[after], perplexity))
    add(f"{EFFECTS[metric].short}<br>[95 % interval]", lambda r: with_interval(r, metric, spec))
    if controlled:
        add("controls,<br>mean ± sd", lambda r: _control(r, spec))
        if {"control_rank", "control_n"} <= {*table.columns}:
            add("rank", _rank)
    return found


def _decimals(table: pd.DataFrame, metric: str) -> str:
    """How effects are written: the same number of decimals in all rows, three unless all of them are tiny."""
    largest = table[[metric, f"{metric}_low", f"{metric}_high"]].abs().to_numpy(dtype=float).max(initial=0)
    return ".3f" if largest >= 0.02 else ".5f"


def _add_columns(fig: go.Figure, columns: list[tuple[str, list[str]]]) -> None:
    """Write the numbers to the right of the picture, every column under its head."""
    widths = np.array([max(map(len, [*head.split("<br>"), *cells])) + 2 for head, cells in columns])
    # the right end of each column: their widths in characters share what the picture leaves
    ends = _SPLIT + (1 - _SPLIT) * np.cumsum(widths) / widths.sum()
    for (head, cells), end in zip(columns, ends, strict=True):
        for row, text in [(-0.85, f"<b>{head}</b>"), *enumerate(cells)]:
            look = {"xanchor": "right", "yref": "y", "yanchor": "middle", "align": "right", "font": {"size": 12}}
            add_words(fig, text, end, row, **look)


def _with_levels(table: pd.DataFrame, effects: pd.DataFrame | None, metric: EffectMetric) -> pd.DataFrame:
    """Add the mean level before and after, from the table by sequence, where the summary has none."""
    levels = [column for column in _BEFORE.get(metric, ())[:2] if column not in table.columns]
    if effects is None or not levels:
        return table
    key = [c for c in ("intervention", "variant", "exact") if c in table.columns and (c != "exact" or c in effects)]
    require_columns(effects, (*key, *levels), "before_after (effects)")
    means = effects.groupby(key, sort=False)[levels].mean().reset_index()
    return table.merge(means, on=key, how="left")


def _labels(table: pd.DataFrame) -> list[str]:
    """The intervention, and below it its variant where one intervention has several rows; at most two lines."""
    names = [str(name) for name in table["intervention"]]
    labels: list[Sequence[str]]
    if "variant" in table.columns and len(set(names)) < len(names):
        labels = [(name, str(variant)) for name, variant in zip(names, table["variant"], strict=True)]
    else:
        labels = [textwrap.wrap(name, _LABEL, max_lines=2, placeholder="…") for name in names]
    return ["<br>".join(escaped(_shortened(line)) for line in lines) for lines in labels]


def _shortened(line: str) -> str:
    return line if len(line) <= _LABEL else line[: _LABEL - 1] + "…"


def _level(value: Any, perplexity: bool) -> str:
    level = as_float(value)
    if perplexity and not math.isnan(level):
        level = math.exp(level) if level < 700 else math.inf
    return number(level, "" if perplexity else ".3f")


def _control(record: dict[Any, Any], spec: str) -> str:
    mean, spread = as_float(record["control_mean"]), as_float(record.get("control_sd"))
    return number(mean, spec) if math.isnan(mean + spread) else f"{number(mean, spec)} ± {number(spread, spec)}"


def _rank(record: dict[Any, Any]) -> str:
    rank, count = as_float(record["control_rank"]), as_float(record["control_n"])
    return "n/a" if math.isnan(rank + count) else f"{rank:.0f} of {count + 1:.0f}"
