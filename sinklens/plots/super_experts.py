"""The largest output of every expert of a mixture, and which of them are super experts."""

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import layer_rows, log_colorbar, thinned
from sinklens.plots.draws import draws
from sinklens.plots.head_grid import grid_height
from sinklens.plots.marks import add_cells, add_marks
from sinklens.plots.style import BELOW, SEQUENTIAL, empty_figure, new_figure, number, require_columns

_TITLE: Final = "Largest output of every expert"
_MARKS: Final = (
    ("is_super", "super by the paper's rule", "circle-open"),
    ("is_super_code", "super by its code's", "x-thin-open"),
    ("outlier", "large, but no massive activation forms there", "diamond-open"),
)


@draws(
    "sinklens-super-experts",
    needs={"experts": ("layer", "expert")},
    whole={_TITLE: {}},
)
def super_experts(experts: pd.DataFrame) -> go.Figure:
    """Draw the largest output of every expert, layer by layer, on a log scale, the super experts marked.

    Args:
        experts: A :class:`~sinklens.studies.super_experts.result.SuperExperts`, or its `experts`; a shared expert (-1)
            stands in a column of its own at the right.

    Raises:
        InputError: A missing column.
    """
    require_columns(experts, ("layer", "expert", "a", "is_super", "is_super_code", "outlier"), "super_experts")
    sizes = experts["a"].to_numpy(float)
    positive = sizes[np.isfinite(sizes) & (sizes > 0)]
    if not len(positive):
        return empty_figure(_TITLE, "Not applicable: no expert wrote anything.")
    layers, count = int(experts["layer"].max()) + 1, int(experts["expert"].max()) + 1
    shared = bool((experts["expert"] < 0).any())
    column = np.where(experts["expert"] < 0, count, experts["expert"]).astype(int)
    row = experts["layer"].to_numpy(int)
    z = np.full((layers, count + shared), np.nan)
    texts = np.full(z.shape, "", dtype=object)
    z[row, column] = np.log10(np.where(sizes > 0, sizes, np.nan))
    for at, (layer, place, record) in enumerate(zip(row, column, experts.to_dict("records"), strict=True)):
        texts[layer, place] = _hover(record, sizes[at])
    grey = int(np.isnan(z).sum())
    note = "Largest magnitude in what an expert's down projection writes, log colours."
    note += f" Grey cells ({grey}): no such expert, or no token was sent to it." if grey else ""
    fig = new_figure(_TITLE, note, height=grid_height(layers))
    low, high = float(positive.min()), float(positive.max())
    bar = log_colorbar("largest output", low, high if high > low else 10 * low)
    add_cells(
        fig, z, texts.tolist(), zmin=np.log10(low), zmax=np.log10(high) if high > low else np.log10(low) + 1,
        colorscale=SEQUENTIAL, colorbar=bar,
    )  # fmt: skip
    for flag, name, symbol in _MARKS:
        marked = experts[flag].astype(bool).to_numpy()
        if marked.any():
            look = {"symbol": symbol, "size": 14, "color": "#D55E00", "line": {"width": 2.5, "color": "#D55E00"}}
            add_marks(fig, column[marked], row[marked], f"{name} ({int(marked.sum())})", look)
    shown = thinned(count, 24)
    ticks = {"tickvals": [*shown, *[count] * shared], "ticktext": [*map(str, shown), *["shared"] * shared]}
    across = {"title": {"text": "expert (0-based)"}, "range": [-0.5, count + shared - 0.5], "showgrid": False} | ticks
    fig.update_layout(xaxis=across, yaxis=layer_rows(layers), legend=BELOW, margin={"b": 100}, showlegend=True)
    fig.update_layout(height=fig.layout.height + 44)
    return fig


def _hover(record: dict[Any, Any], size: float) -> str:
    name = f"L{record['layer']} shared" if record["expert"] < 0 else f"L{record['layer']}E{record['expert']}"
    tokens = record.get("n_tokens")
    told = "" if tokens is None or pd.isna(tokens) else f"<br>{int(tokens):,} tokens sent to it"
    return f"<b>{name}</b><br>largest output {number(size)}{told}"
