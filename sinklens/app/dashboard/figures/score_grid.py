"""Layer x head grid of any number per head."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from sinklens.plots.head_grid import draw_heads, grid_height
from sinklens.plots.style import SEQUENTIAL, colorbar, empty_figure, head_label, new_figure, number, signed_colours


def score_grid(
    values: Any, title: str, *, unit: str = "", note: str = "", signed: bool | None = None, ticks: int = 32
) -> go.Figure:
    """Draw a number per head, layer 0 at the top; NaN is grey.

    Colours of a signed number are symmetric around 0; others begin at 0, and a share (all within 0 to 1) ends at 1.

    Args:
        values: ``[layer head]``.
        title: Plain text.
        unit: At the colour bar.
        note: Below the title.
        signed: Whether the number has a sign; by default whether any is below 0.
        ticks: Most labels along an axis.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0 or not np.isfinite(array).any():
        return empty_figure(title, "Not applicable: no head has a value.")
    rows, columns = array.shape
    top = float(np.nanmax(np.abs(np.where(np.isfinite(array), array, np.nan)))) or 1.0
    has_sign = bool(np.nanmin(array) < 0) if signed is None else signed
    options: dict[str, Any] = {"zmin": 0.0, "zmax": 1.0 if 0.05 < top <= 1 else top, "colorscale": SEQUENTIAL}
    if has_sign:
        options = signed_colours(top)
    texts = [
        [f"<b>{head_label(layer, head)}</b><br>{number(array[layer, head])}" for head in range(columns)]
        for layer in range(rows)
    ]
    grey = int(np.isnan(array).sum())
    notes = " ".join(filter(None, [note, f"Grey cells ({grey}): not applicable." if grey else ""]))
    fig = new_figure(title, notes, height=grid_height(rows))
    draw_heads(fig, array, texts, ticks=(ticks, ticks), colorbar=colorbar(unit), **options)
    return fig
