"""Loss against the number of heads taken away, in the order of a ranking, beside as many random ones."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import thinned, value_axis
from sinklens.plots.draws import SWEEP, draws, one_row_each
from sinklens.plots.effects import EFFECTS, VARIANT, EffectMetric, choose_intervention
from sinklens.plots.marks import add_band, add_line, add_marks, error_bars
from sinklens.plots.style import (
    BELOW,
    CATEGORICAL,
    MUTED,
    empty_figure,
    escaped,
    faint,
    float32,
    new_figure,
    require_columns,
)


@draws(SWEEP, needs={"summary": VARIANT})
def cumulative_curve(
    summary: pd.DataFrame, *, metric: EffectMetric = "delta_loss", intervention: str | None = None
) -> go.Figure:
    """Draw the effect of switching off the first k heads of a ranking, for every k, beside k random heads.

    The coloured line is the chosen ranking's first k heads together, with 95 % intervals over sequences. Every faint
    point is one draw of k random heads (its mean over sequences); the grey band is their mean +- one standard
    deviation, the dotted lines their extremes. The ranking found something where the line leaves the dotted ones. A k
    without random draws has no band: nothing is drawn across it.

    Args:
        summary: A sweep, or its summary, of which the rows of kind "top" and "random" are drawn; needs `kind`,
            `intervention`, `k`, the metric and its bounds (`delta_loss_low`, `delta_loss_high`).
        metric: Column to draw.
        intervention: Which intervention, when the sweep has several.

    Raises:
        InputError: An unknown metric or intervention, several interventions and none chosen, or a missing column.
    """
    if metric not in EFFECTS:
        raise InputError(f"cumulative_curve can draw {', '.join(EFFECTS)}, not {metric!r}.")
    bounds = (f"{metric}_low", f"{metric}_high")
    require_columns(summary, ("intervention", "kind", "k", metric, *bounds), "cumulative_curve")
    look = EFFECTS[metric]
    name = f"{look.title} with the number of heads ablated"
    rows = summary[summary["kind"].isin(["top", "random"])].dropna(subset=[metric])
    if not (rows["kind"] == "top").any():
        return empty_figure(name, f"Not applicable: the sweep has no cumulative sets with a value for {metric}.")
    rows, chosen = choose_intervention(rows, intervention)
    top = rows[rows["kind"] == "top"].sort_values("k")
    one_row_each(top, ("k",), "cumulative_curve")
    draws = _draws(rows, top).sort_values("k")
    if top.empty:
        return empty_figure(name, f"Not applicable: the sweep has no cumulative sets of {chosen} for {metric}.")
    band = draws.groupby("k")[metric].agg(["mean", "std", "min", "max", "count"])
    ks = sorted({*top["k"].astype(int), *draws["k"].astype(int)})
    band = band.reindex(ks)  # a k without draws stays missing
    fig = new_figure(f"{name}: {chosen}", _notes(band, look.note), height=380)
    _add_band(fig, band, draws, metric)
    value, low, high = (top[column].to_numpy(dtype=float) for column in (metric, *bounds))
    fig.add_trace(
        go.Scatter(
            x=top["k"].to_numpy(dtype=int),
            y=float32(value),
            error_y=error_bars(value, low, high, width=4, thickness=1.4),
            name="top k, 95 % interval" if np.isfinite(low).any() else "top k (no interval)",
            mode="lines+markers",
            line={"color": CATEGORICAL[1], "width": 2.4},
            marker={"size": 8},
            text=[_heads(record) for record in top.to_dict("records")],
            customdata=float32(np.stack([low, high], -1)),
            hovertemplate=f"top %{{x}}<br>{look.short}: %{{y:.4g}} [%{{customdata[0]:.4g}}, %{{customdata[1]:.4g}}]"
            "%{text}<extra></extra>",
        )
    )
    if look.signed:
        fig.add_hline(y=0, line={"color": MUTED, "width": 1})
    room = 0.04 * max(ks[-1] - ks[0], 1)
    ticks = [ks[i] for i in thinned(len(ks), 24)]
    fig.update_layout(
        xaxis=value_axis("heads ablated (k)", tickvals=ticks, range=[ks[0] - room, ks[-1] + room]),
        yaxis=value_axis(look.unit),
        legend=BELOW,
        margin={"b": 88},
        height=fig.layout.height + 32,
    )
    return fig


def _add_band(fig: go.Figure, band: pd.DataFrame, draws: pd.DataFrame, metric: str) -> None:
    """Random draws: the band, the extremes, their mean, and every draw as a faint point."""
    # one draw has no spread, and so no band
    add_band(fig, band["mean"] - band["std"], band["mean"] + band["std"], "random k, mean ± sd", faint(MUTED, 0.16))
    if draws.empty:
        return
    x = band.index.to_numpy(dtype=int)
    for column in ("min", "max"):
        dotted: dict[str, Any] = {"width": 1.2, "dash": "dot", "legendgroup": "extremes", "showlegend": column == "min"}
        add_line(fig, x, band[column], "random k, extremes", MUTED, **dotted)
    text = [_heads(record) for record in draws.to_dict("records")]
    marker = {"size": 5, "color": MUTED, "opacity": 0.35}
    across = draws["k"].to_numpy(dtype=int)
    y = float32(draws[metric])
    add_marks(fig, across, y, "one random draw", marker, hover="random %{x}: %{y:.4g}%{text}", text=text)
    spread = np.stack([band["std"].to_numpy(dtype=float), band["count"].to_numpy(dtype=float)], -1)
    said = "random %{x}: mean %{y:.4g}, sd %{customdata[0]:.3g} (%{customdata[1]:.0f} draws)"
    look: dict[str, Any] = {"width": 1.6, "symbol": "square", "size": 5}
    add_line(fig, x, band["mean"], "random k, mean ± sd", MUTED, hover=said, customdata=spread, **look)


def _draws(rows: pd.DataFrame, top: pd.DataFrame) -> pd.DataFrame:
    """The random sets, without those that were drawn as controls of something else of the same size (a group)."""
    draws = rows[rows["kind"] == "random"]
    if not {"control_of", "variant"} <= {*rows.columns}:
        return draws
    return draws[draws["control_of"].isna() | draws["control_of"].isin(top["variant"])]


def _heads(record: dict[Any, Any]) -> str:
    """The heads of a set for the hover, the first twelve of them."""
    listed = record.get("heads")
    if not isinstance(listed, str) or not listed:
        return ""
    names = listed.split(",")
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return "<br>" + escaped(", ".join(names[:12]) + more)


def _notes(band: pd.DataFrame, note: str) -> str:
    counts = band["count"].dropna()
    if counts.empty:
        return f"{note} No random draws: nothing says what as many other heads would do."
    few, many = int(counts.min()), int(counts.max())
    draws = f"{few}" if few == many else f"{few} to {many}"
    without = int(band["mean"].isna().sum())
    gap = f" {without} of {len(band)} sizes have no random draws." if without else ""
    sizes = f"{draws} draw{'s' * (draws != '1')} of each size"
    band_note = "band = mean ± one standard deviation" if many > 1 else "one draw has no spread, so there is no band"
    return f"{note} Random sets: {sizes}; {band_note}.{gap}"
