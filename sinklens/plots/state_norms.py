"""Norms of hidden states, keys and values by layer: the sink against the other tokens."""

from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import layer_axis, light_grid, log_axis
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.marks import add_line, add_marks
from sinklens.plots.style import (
    CATEGORICAL,
    MUTED,
    empty_figure,
    float32,
    layer_name,
    new_figure,
    number,
    require_columns,
)
from sinklens.wording import several

_STATES: Final = {
    "hidden": ("hidden state after the layer", CATEGORICAL[1], "circle"),
    "key": ("keys, mean over KV heads", CATEGORICAL[0], "square"),
    "value": ("values, mean over KV heads", CATEGORICAL[2], "diamond"),
}


@draws(
    CENSUS,
    needs={"state_norms": ("state", "layer", "kv_head")},
    made_by={"state_norms": 'measure(model, tokens, "state_norms")'},
)
def state_norms(norms: pd.DataFrame, *, position: int = 0) -> go.Figure:
    """Draw by layer how much longer the sink's hidden state, key and value are than other tokens', as a ratio.

    Above the line at 1 the sink's state is longer than the others' (the residual peak), below it shorter (drained
    values, small keys). Lines of keys and values are the ratio of means over KV heads; faint points are single KV
    heads. A layer without attention has neither.

    Args:
        norms: A census, or what `measure(model, tokens, "state_norms")` gives. Columns `layer`,
            `state`, `kv_head`, `norm`, `others`, `ratio`.
        position: Position of the sink, for the title.

    Raises:
        InputError: A missing column.

    Source: after Gu et al. 2025 (arXiv 2410.10781, section 3.1), which draws the norms themselves.
    """
    require_columns(norms, ("layer", "state", "kv_head", "norm", "others", "ratio"), "state_norms")
    title = f"Norms at position {position} relative to the other tokens"
    table = norms.dropna(subset=["ratio"])
    if table.empty:
        return empty_figure(title, "Not applicable: no states were measured.")
    notes = ["Ratio of L2 norms, mean over sequences; log axis. 1 = like the other tokens."]
    absent = [state for state in ("key", "value") if state not in set(table["state"])]
    if absent:
        notes.append(f"Not applicable: {' and '.join(f'{state}s' for state in absent)} were not measured.")
    zero = int((table["ratio"] <= 0).sum())
    if zero:
        notes.append(f"{several(zero, 'ratio')} of exactly 0 {'has' if zero == 1 else 'have'} no place on a log axis.")
    fig = new_figure(title, " ".join(notes), height=360)
    for state, (name, colour, symbol) in _STATES.items():
        rows = table[table["state"] == state]
        if rows.empty:
            continue
        means = rows.groupby("layer")[["norm", "others"]].mean()
        layers = range(int(means.index.min()), int(means.index.max()) + 1)
        means = means.reindex(layers)  # a layer without it is a gap
        text = [_hover(layer, row) for layer, row in zip(layers, means.to_dict("records"), strict=True)]
        said = f"%{{text}}<br>{name}: %{{y:.4g}} times the others"
        ratio = means["norm"] / means["others"]
        add_line(fig, [*layers], ratio, name, colour, symbol=symbol, text=text, hover=said)
        if state != "hidden" and rows.groupby("layer").size().max() > 1:
            add_marks(
                fig,
                rows["layer"].to_numpy(dtype=int),
                float32(rows["ratio"]),
                f"one KV head ({state})",
                {"size": 5, "symbol": symbol, "color": colour, "opacity": 0.4},
                hover=f"{state} of %{{text}}<br>%{{y:.4g}} times the others",
                text=[f"KV head {row['kv_head']}, {_hover(row['layer'], row)}" for row in rows.to_dict("records")],
                showlegend=False,
            )
    fig.add_hline(y=1, line={"color": MUTED, "width": 1.4, "dash": "dash"})
    numbers = range(int(table["layer"].min()), int(table["layer"].max()) + 1)
    drawn = [value for trace in fig.data for value in trace.y] + [1.0]
    fig.update_layout(
        xaxis=layer_axis(numbers) | light_grid(),
        yaxis={"title": {"text": "norm / mean norm of the others"}} | log_axis(drawn),
        showlegend=True,
    )
    return fig


def _hover(layer: Any, row: dict[Any, Any]) -> str:
    return f"{layer_name(int(layer))}<br>norm {number(row['norm'])}, others {number(row['others'])}"
