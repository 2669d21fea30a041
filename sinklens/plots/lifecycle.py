"""Life of a massive activation: which layer writes an entry of the residual stream, and which one cancels it."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import layer_axis, light_grid, value_axis
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.marks import add_bars, add_line
from sinklens.plots.style import (
    CATEGORICAL,
    INK,
    MUTED,
    empty_figure,
    float32,
    new_figure,
    number,
    require_columns,
    token_label,
)
from sinklens.wording import several

if TYPE_CHECKING:
    from sinklens.detectors.lifecycle_steps import Step

_TITLE: Final = "Life of an entry of the residual stream"
_COLUMNS: Final = ("sequence", "layer", "position", "token", "channel", "before", "attention", "mlp", "after")
_PARTS: Final = (("attention", "attention adds", CATEGORICAL[0]), ("mlp", "MLP adds", CATEGORICAL[1]))


@draws(
    CENSUS,
    needs={"lifecycle": ("sequence", "layer", "position", "channel")},
    made_by={"lifecycle": 'measure(model, tokens, "lifecycle", entries=[(position, channel)])'},
)
def lifecycle(traced: pd.DataFrame, *, entry: tuple[int, int] | None = None) -> go.Figure:
    """Draw which layer writes a large entry of the residual stream and which one takes it away again.

    Bars are signed contributions (mean over sequences); per layer, the entry before plus both bars is the entry after
    (the black line). The subtitle names the half-layer that adds most towards the entry's largest value and the one
    that later takes most of it away, with their shares of that value. A layer without an MLP (or without anything that
    mixes tokens) has no such bar.

    Args:
        traced: A census (position 0 of its first sequences, in the channel that grows largest there), or what
            `measure(model, tokens, "lifecycle", entries=[(position, channel)])` gives.
        entry: Position and channel drawn; needed when the table has several.

    Raises:
        InputError: An entry that is not in the table, several and none chosen, or a missing column.

    Source: contributions after Sun et al. 2024 (arXiv 2402.17762); step-up and step-down layers after Sun et al. 2026
        (arXiv 2603.05498).
    """
    require_columns(traced, _COLUMNS, "lifecycle")
    if traced.empty:
        return empty_figure(
            _TITLE, "Not applicable: what attention and MLP add is not known, or does not make the output of a layer."
        )
    present = sorted({(int(p), int(c)) for p, c in zip(traced["position"], traced["channel"], strict=True)})
    if (entry is None and len(present) > 1) or (entry is not None and tuple(entry) not in present):
        asked = "" if entry is None else f", not {tuple(entry)}"
        raise InputError(f"Choose one entry (position, channel) with entry=: {', '.join(map(str, present))}{asked}.")
    position, channel = entry or present[0]
    rows = traced[(traced["position"] == position) & (traced["channel"] == channel)]
    by_layer = rows.groupby("layer")
    table = by_layer[["before", "attention", "mlp", "after"]].mean().reset_index().sort_values("layer")
    layers = [int(layer) for layer in table["layer"]]
    tokens = rows["token"].astype(str).unique()
    token = f", token {token_label(tokens[0])}" if len(tokens) == 1 else ""
    from sinklens.detectors.lifecycle_steps import steps

    writer, canceller = steps(table)
    n = rows["sequence"].nunique()
    notes = [f"Mean over {several(n, 'sequence')}.", _sentence("Written by", writer)]
    notes.append(_sentence("Cancelled most by", canceller) if canceller else "No layer takes it away again.")
    fig = new_figure(f"{_TITLE}: position {position}, channel {channel}", " ".join(notes), height=360)
    if token:  # already escaped
        fig.layout.title.text = fig.layout.title.text.replace(f", channel {channel}", f"{token}, channel {channel}", 1)
    for column, name, colour in _PARTS:
        add_bars(fig, layers, float32(table[column]), name, colour, hover=f"layer %{{x}}<br>{name} %{{y:+.4g}}")
    # the entry before the first layer stands one step to the left of it
    numbers = [layers[0] - 1, *layers]
    heights = [table["before"].iloc[0], *table["after"]]
    hover = "after layer %{x}<br>h = %{y:.4g}"
    add_line(fig, numbers, heights, "entry after the layer", INK, hover=hover, symbol="circle")
    for step, text in ((writer, "writes"), (canceller, "cancels")):
        if step is not None and abs(step.share) >= 0.1:
            fig.add_annotation(_mark(step, text))
    fig.add_hline(y=0, line={"color": MUTED, "width": 1})
    fig.update_layout(
        xaxis=layer_axis(numbers) | light_grid() | {"range": [numbers[0] - 0.6, numbers[-1] + 0.6]},
        yaxis=value_axis("h, one entry of the residual stream"),
        barmode="group",
        bargap=0.3,
    )
    if layers[0] > 0:
        fig.layout.xaxis.ticktext = [str(number_) for number_ in np.asarray(fig.layout.xaxis.tickvals)]
    return fig


def _sentence(what: str, step: "Step | None") -> str:
    if step is None:
        return "No layer writes it."
    name = "MLP" if step.part == "mlp" else "attention"
    return f"{what} the {name} of layer {step.layer}: {number(step.value)}, {step.share:.0%} of its largest value."


def _mark(step: "Step", text: str) -> dict[str, Any]:
    return {
        "x": step.layer + (0.18 if step.part == "mlp" else -0.18),
        "y": step.value,
        "text": text,
        "yshift": 12 if step.value > 0 else -12,
        "showarrow": False,
        "font": {"size": 12},
    }
