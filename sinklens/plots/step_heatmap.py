"""Every head, or every layer, over training steps."""

from typing import Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import log_colorbar, named_axis, thinned
from sinklens.plots.draws import draws
from sinklens.plots.dynamics import ALL, one_domain
from sinklens.plots.marks import add_cells
from sinklens.plots.style import SEQUENTIAL, colorbar, empty_figure, head_label, new_figure, require_columns

_NAMES: Final = {
    "importance_first": "attention to position 0",
    "sink_rate_first": "sink rate of position 0",
    "delta_logit": "logit margin of position 0",
    "drain": "|v| of position 0 / others",
    "drain_wo": "|W_O v| of position 0 / others",
    "max_over_median": "largest |h| / median",
    "resid_ratio": "residual norm of position 0 / others",
}
_LOG: Final = ("max_over_median",)


@draws("sinklens-dynamics", needs={"heads": ("step", "domain", "layer", "head")})
def step_heatmap(
    table: pd.DataFrame, value: str = "importance_first", *, domain: str | None = None, limit: int = 64
) -> go.Figure:
    """Draw how one number of every head (or layer) changes over the checkpoints of a training.

    Columns are checkpoints in order, not to scale.
    Of more than `limit` heads those are drawn whose value changes most, in the order of layers. What does not apply
    is missing.

    Args:
        table: A result of `measure_dynamics` (its heads), or its table of heads or layers: step, domain, layer, head
            (of heads) and the value.
        value: A column of it; default: the attention that position 0 receives.
        domain: Whose values; default: all domains together, or the only one.
        limit: Most rows drawn.

    Raises:
        InputError: A missing column, or several domains, none of all together, and none chosen.
    """
    require_columns(table, ("step", "domain", "layer", value), "step_heatmap")
    name = _NAMES.get(value, value)
    by_head = "head" in table.columns
    title = f"{name[0].upper()}{name[1:]}, {'head by head' if by_head else 'layer by layer'}"
    key = ["layer", "head"] if by_head else ["layer"]
    if table.empty:
        return empty_figure(title, "Not applicable: no checkpoint was measured.")
    chosen = domain or one_domain(table, "step_heatmap")
    own = table[(table["domain"] == chosen) & (table["layer"] >= 0)]
    if own[value].isna().all():
        return empty_figure(title, "Not applicable: nothing of the kind was measured.")
    grid = own.pivot(index=key, columns="step", values=value).astype(float)
    spread = (grid.max(axis=1) - grid.min(axis=1)).fillna(0)
    drawn = grid.loc[spread.nlargest(limit, keep="first").index.sort_values()]
    notes = ["Columns: checkpoints in order."]
    if chosen != ALL and table["domain"].nunique() > 1:
        notes.append(f"Texts: {chosen}.")
    if (table.loc[table["layer"] < 0, value].notna()).any():
        notes.append("Without the embedding's output.")
    if len(drawn) < len(grid):
        notes.append(f"{len(drawn)} of {len(grid)} rows: those that change most.")
    labels = [head_label(*place) if by_head else f"layer {place}" for place in drawn.index]
    steps = [int(step) for step in drawn.columns]
    z = drawn.to_numpy()
    options: dict[str, object] = {"colorbar": colorbar(name)}
    if value in _LOG and np.nanmin(z) > 0:
        low, high = float(np.nanmin(z)), float(np.nanmax(z))
        options["colorbar"] = log_colorbar(name, low, max(high, low * 1.01))
    if value in ("importance_first", "sink_rate_first"):
        options |= {"zmin": 0, "zmax": 1}
    fig = new_figure(title, " ".join(notes), height=max(200, 20 * len(drawn)))
    hover = [[f"{label}, step {step:,}: {cell:.4g}" for step, cell in zip(steps, row, strict=True)]
             for label, row in zip(labels, z, strict=True)]  # fmt: skip
    shade = np.log10(z) if value in _LOG and np.nanmin(z) > 0 else z
    add_cells(fig, shade, hover, colorscale=SEQUENTIAL, **options)
    shown = thinned(len(steps), 16)
    across = named_axis([f"{steps[i]:,}" for i in shown], tickvals=shown, title={"text": "training step"})
    fig.update_layout(xaxis=across | {"range": [-0.5, len(steps) - 0.5]}, yaxis=named_axis(labels, down=True))
    return fig
