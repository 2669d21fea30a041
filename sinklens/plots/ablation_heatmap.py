"""Layer x head grid of what changes when a head is taken away."""

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.draws import SWEEP, draws, one_row_each
from sinklens.plots.effects import EFFECTS, VARIANT, Effect, EffectMetric, choose_intervention, with_interval
from sinklens.plots.head_grid import HeadGrid, draw_heads, grid_height
from sinklens.plots.marks import add_marks
from sinklens.plots.style import (
    INK,
    SEQUENTIAL,
    colorbar,
    empty_figure,
    new_figure,
    number,
    require_columns,
    signed_colours,
)
from sinklens.wording import several

_HOVER: Final[tuple[EffectMetric, ...]] = ("delta_loss", "kl", "top1_agreement", "delta_logit_diff")


@draws(SWEEP, needs={"summary": VARIANT}, settings={"n_layers": "model.n_layers"})
def ablation_heatmap(
    summary: pd.DataFrame,
    *,
    metric: EffectMetric = "delta_loss",
    intervention: str | None = None,
    n_layers: int | None = None,
    limit: float | None = None,
) -> go.Figure:
    """Draw the effect of each head's ablation as a layer x head grid, layer 0 at the top.

    Estimates by attribution (rows that are not `exact`) stand where a head was not run; the subtitle counts them.

    Changes (`delta_loss`, `delta_logit_diff`) have colours centred on 0, symmetric, reaching the largest magnitude or
    `limit`; cells beyond it are clipped and counted. A diamond marks heads whose 95 % interval leaves out 0: with that
    many heads about one in twenty without any effect is marked too. KL and top-1 agreement have a bound that every
    ablation stays on one side of, so their intervals say nothing about "no effect" and nothing is marked. A cell is
    grey when its head was not ablated or has no such number; the subtitle says how many.

    Args:
        summary: A sweep, or its summary, of which the rows of kind "head" are drawn; needs `kind`, `intervention`,
            `layer`, `head`, the metric and its bounds (`delta_loss_low`, `delta_loss_high`).
        metric: Column to colour.
        intervention: Which intervention, when the sweep has several.
        n_layers: Layers of the model, so that trailing layers without attention keep their (grey) row. A sweep knows
            them.
        limit: Magnitude at which colours end, for changes; by default the largest one.

    Raises:
        InputError: An unknown metric or intervention, several interventions and none chosen, a `limit` that is not
            above 0, or a missing column.
    """
    if metric not in EFFECTS:
        raise InputError(f"ablation_heatmap can colour {', '.join(EFFECTS)}, not {metric!r}.")
    bounds = (f"{metric}_low", f"{metric}_high")
    require_columns(summary, ("intervention", "kind", "layer", "head", metric, *bounds), "ablation_heatmap")
    if limit is not None and not 0 < limit < float("inf"):
        raise InputError(f"limit must be a magnitude above 0, got {limit!r}.")
    look = EFFECTS[metric]
    rows = summary[summary["kind"] == "head"]
    if rows.empty or rows[metric].isna().all():
        return empty_figure(look.title, f"Not applicable: no single head of this sweep has a value for {metric}.")
    rows, chosen = choose_intervention(rows, intervention)
    title = f"{look.title}: {chosen}"
    if rows.empty or rows[metric].isna().all():
        return empty_figure(title, f"Not applicable: no single head of this sweep has a value for {metric}.")
    if "exact" in rows.columns:  # a head that was both estimated and run shows what was run
        exact, places = rows["exact"].astype(bool), pd.MultiIndex.from_frame(rows[["layer", "head"]])
        rows = rows[exact | ~places.isin(places[exact])]
    one_row_each(rows, ("layer", "head"), "ablation_heatmap")
    grid = HeadGrid(rows, n_layers)
    z = grid.fill(rows[metric])
    options, clipped = _colours(z, look, limit)
    low, high = grid.fill(rows[bounds[0]]), grid.fill(rows[bounds[1]])
    apart = np.argwhere((low > 0) | (high < 0))
    notes = _notes(rows, grid, z, look, len(apart), clipped, options["zmax"])
    fig = new_figure(title, notes, height=grid_height(grid.rows))
    draw_heads(fig, z, grid.texts(lambda record, name: _hover_text(record, name, metric)), **options)
    if look.signed:
        marker = {"symbol": "diamond", "size": 7, "color": "white", "line": {"color": INK, "width": 1.2}}
        add_marks(fig, apart[:, 1], apart[:, 0], "interval leaves out 0", marker, showlegend=False)
    return fig


def _colours(z: Any, look: Effect, limit: float | None) -> tuple[dict[str, Any], int]:
    """The trace's colour options, and how many cells lie beyond them."""
    if look.scale == "signed":
        top = limit or float(np.nanmax(np.abs(z))) or 1.0
        clipped = int((np.abs(z) > top).sum())
        return signed_colours(top) | {"colorbar": colorbar(look.unit)}, clipped
    top = 1.0 if look.scale == "share" else float(np.nanmax(z)) or 1.0
    return {"zmin": 0, "zmax": top, "colorscale": SEQUENTIAL, "colorbar": colorbar(look.unit)}, 0


def _notes(rows: pd.DataFrame, grid: HeadGrid, z: Any, look: Effect, apart: int, clipped: int, top: float) -> str:
    """The subtitle: what the marks are, what is estimated, missing and clipped."""
    notes = [look.note]
    judged = int(rows[[look.column, f"{look.column}_low", f"{look.column}_high"]].notna().all(axis=1).sum())
    if look.signed and judged:
        notes.append(f"Diamond: the 95 % interval leaves out 0 ({apart} of {judged:,} heads that have one).")
    elif look.signed:
        notes.append("No head has an interval (fewer than 5 sequences), so none is marked.")
    estimated = _estimated(rows) & rows[look.column].notna()
    if estimated.any():
        notes.append(f"Estimated by attribution, not run: {int(estimated.sum()):,} heads.")
    notes += grid.grey(z, rows="nothing ablated in {}", cells="not ablated or not applicable")
    if clipped:
        notes.append(
            f"Colours are clipped: {several(clipped, 'cell')} {'lies' if clipped == 1 else 'lie'} beyond "
            f"{number(top)}; the hover has the value."
        )
    return " ".join(notes)


def _estimated(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows come from attribution patching instead of a run."""
    exact = rows["exact"] if "exact" in rows.columns else pd.Series(True, index=rows.index)
    return ~exact.astype(bool)


def _hover_text(record: dict[Any, Any], name: str, metric: EffectMetric) -> str:
    lines = [name + ("" if record.get("exact", True) else " (estimate)")]
    for key in (metric, *(other for other in _HOVER if other != metric)):
        if key in record:
            look = EFFECTS[key]
            lines.append(f"{look.short}: {with_interval(record, key)}")
    if "n_sequences" in record:
        lines.append(f"sequences: {number(record['n_sequences'], ',.0f')}")
    return "<br>".join(lines)
