"""How the model-wide sink rate depends on the threshold."""

from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import value_axis
from sinklens.plots.draws import CENSUS, draws, one_row_each
from sinklens.plots.marks import add_line, add_words
from sinklens.plots.style import CATEGORICAL, MUTED, empty_figure, new_figure, require_columns

_TITLE: Final = "Model-wide sink rate by threshold"


@draws(
    CENSUS,
    needs={"eps_sweep": ("layer", "head", "position", "eps")},
    settings={"eps": "settings.eps"},
    whole={"Sink rate against its threshold": {}},
)
def eps_sweep(sweep: pd.DataFrame, *, eps: float | None = None) -> go.Figure:
    """Draw the mean sink rate of all heads against the threshold from which a key's attention counts as a sink.

    Two lines: position 0 (the model-wide sink metric of Gu et al. 2025) and each head's own strongest key,
    which also counts sinks that are not at the start. A conclusion that turns over between thresholds is
    visible here.

    Args:
        sweep: A census, or one row per layer, head, position and eps with `sink_rate`; for every head position 0
            and, when it is another one, the head's strongest key.
        eps: Threshold used elsewhere, marked by a vertical line; default: the census's.

    Raises:
        InputError: A missing column, or a head with more than two positions: which is its strongest key?
    """
    require_columns(sweep, ("layer", "head", "position", "eps", "sink_rate"), "eps_sweep")
    table = sweep.dropna(subset=["sink_rate"])
    if table.empty:
        return empty_figure(_TITLE, "Not applicable: no attention layer was measured.")
    head = ("layer", "head", "eps")
    first = table[table["position"] == 0]
    one_row_each(table[table["position"] != 0], head, "eps_sweep")
    # The strongest key's row is the one that is not position 0, where there is one.
    strongest = table.sort_values("position").drop_duplicates([*head], keep="last")
    n_heads = len(table[["layer", "head"]].drop_duplicates())
    fig = new_figure(_TITLE, f"Mean over {n_heads:,} heads, every head counted alike.", height=240, wrap=80)
    for i, (rows, name) in enumerate(((first, "position 0"), (strongest, "each head's strongest key"))):
        line = rows.groupby("eps")["sink_rate"].mean()
        look: dict[str, Any] = {"dash": ("solid", "dash")[i], "symbol": ("circle", "square")[i], "size": 8}
        hover = f"{name}<br>eps %{{x}}<br>rate %{{y:.3f}}"
        add_line(fig, line.index.to_numpy(), line.to_numpy(), name, CATEGORICAL[1 - i], hover=hover, **look)
    if eps is not None:
        fig.add_vline(x=eps, line={"color": MUTED, "dash": "dot", "width": 1.5})
        add_words(fig, f" eps {eps:g} is used here", eps, 1, xref="x", yanchor="top", font={"size": 12})
    fig.update_layout(
        xaxis=value_axis("eps, threshold on importance", tickvals=sorted(table["eps"].unique())),
        yaxis=value_axis("sink rate (share)", range=[-0.02, 1.02]),
    )
    return fig
