"""A generation: what each token attends to and what becomes of it."""

from typing import Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import log_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_line, add_marks
from sinklens.plots.style import (
    BELOW,
    CATEGORICAL,
    MUTED,
    empty_figure,
    float32,
    new_figure,
    require_columns,
    token_label,
)

_TITLE: Final = "Sinks while generating"
_PANELS: Final = ((0.72, 1.0), (0.37, 0.65), (0.0, 0.28))


@draws("sinklens-generation", needs={"steps": ("position",), "tokens": ("position",)}, whole={_TITLE: {}})
def generation(steps: pd.DataFrame, tokens: pd.DataFrame) -> go.Figure:
    """Draw a generation by position: attention to position 0, heads that each token is a sink of, largest entries.

    Above: each generated token's attention to position 0, mean over heads, with what even attention gives. Middle: the
    heads for which a token is a sink; too few tokens follow the last ones, which have no mark. Below: the largest
    entry of the residual stream, massive tokens marked. Tokens of the prompt are grey.

    Args:
        steps: A :class:`~sinklens.studies.generation.result.Generation`, or its `steps`.
        tokens: Its `tokens`.

    Raises:
        InputError: A missing column.
    """
    require_columns(steps, ("position", "mass_first", "null"), "generation")
    needed = ("position", "token", "generated", "n_sink_heads", "max_abs", "is_massive")
    require_columns(tokens, needed, "generation")
    if tokens.empty:
        return empty_figure(_TITLE, "Not applicable: nothing was generated.")
    prompt = int((~tokens["generated"].astype(bool)).sum())
    note = f"{len(steps)} tokens after a prompt of {prompt} (grey); filled squares below are massive."
    fig = new_figure(_TITLE, note, height=520)
    for column, name, colour, dash in (
        ("mass_first", "attention to position 0", CATEGORICAL[0], "solid"),
        ("null", "by even attention", MUTED, "dash"),
    ):
        add_line(fig, steps["position"], steps[column], name, colour, hover="%{y:.3f}", dash=dash)
    names = [f"{row.position} {token_label(str(row.token), 24)}" for row in tokens.itertuples()]
    colours = np.where(tokens["generated"].astype(bool), CATEGORICAL[1], MUTED)
    massive = tokens["is_massive"].astype(bool).to_numpy()
    for axis, column, what, symbols in (
        ("2", "n_sink_heads", "heads that it is a sink of", "circle"),
        ("3", "max_abs", "largest entry", np.where(massive, "square", "circle-open")),
    ):
        add_marks(
            fig,
            tokens["position"],
            float32(tokens[column]),
            what,
            {"color": colours.tolist(), "symbol": symbols, "size": 7},
            hover=f"%{{text}}<br>{what}: %{{y:.4g}}",
            xaxis="x",
            yaxis=f"y{axis}",
            showlegend=False,
            cliponaxis=False,
            text=names,
        )
    heights = [{"domain": [*domain]} for domain in _PANELS]
    fig.update_layout(
        xaxis=value_axis("position", anchor="y3", range=[-0.5, len(tokens) - 0.5]),
        yaxis=value_axis("attention", range=[-0.02, 1.02], **heights[0]),
        yaxis2=value_axis("sink of heads", rangemode="tozero", **heights[1]),
        yaxis3={"title": {"text": "|h|"}} | log_axis(tokens["max_abs"]) | heights[2],
        legend=BELOW,
        margin={"b": 100},
        height=fig.layout.height + 44,
    )
    return fig
