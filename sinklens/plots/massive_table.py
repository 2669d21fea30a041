"""The strongest massive activations as a table."""

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.style import empty_figure, new_figure, number, require_columns, token_label

_COLUMNS = ("sequence", "layer", "position", "token", "channel", "value", "ratio")


def strongest_activations(massive: pd.DataFrame, n: int = 20) -> pd.DataFrame:
    """Pick the `n` largest hidden-state entries, each (sequence, position, channel) once.

    A massive activation lives in the residual stream for many layers; listing it once per layer would fill
    the table with a single entry. It is kept at the layer where |value| is largest, and `n_layers` counts the
    layers that list it.

    Args:
        massive: Top entries of |h| per sequence and layer with `sequence`, `layer`, `position`, `token`,
            `channel`, `value` (signed) and `ratio` (to the layer's median).
        n: Rows returned.

    Returns:
        The rows, largest |value| first, with `n_layers` added.
    """
    require_columns(massive, _COLUMNS, "strongest_activations")
    key = ["sequence", "position", "channel"]
    ordered = massive.assign(magnitude=massive["value"].abs()).sort_values(
        ["magnitude", "sequence", "layer"], ascending=[False, True, True], kind="stable"
    )
    counts = massive.groupby(key)["layer"].nunique().rename("n_layers").reset_index()
    best = ordered.drop_duplicates(key).head(n).drop(columns="magnitude")
    return best.merge(counts, on=key, how="left").reset_index(drop=True)


@draws(
    CENSUS,
    needs={"massive": ("sequence", "layer", "position", "channel")},
    whole={"Strongest massive activations": {}},
)
def massive_table(massive: pd.DataFrame, *, n: int = 20) -> go.Figure:
    """List the largest entries of the hidden states: where each stands and how far it is beyond the median.

    Args:
        massive: A census, or the table of `strongest_activations`; `absolute` and `relative` (over the two thresholds)
            show when present.
        n: Rows shown.
    """
    rows = strongest_activations(massive, n)
    title = "Strongest hidden-state entries"
    if rows.empty:
        return empty_figure(title, "Not applicable: no hidden state was recorded.")
    cells = {
        "sequence": rows["sequence"].tolist(),
        "layer": ["embed" if layer < 0 else str(layer) for layer in rows["layer"]],
        "position": rows["position"].tolist(),
        "token": [token_label(str(token), 24) for token in rows["token"]],
        "channel": rows["channel"].tolist(),
        "h": [number(v, ",.4g") for v in rows["value"]],
        "x median": [number(v, ",.4g") for v in rows["ratio"]],
        "layers listed": rows["n_layers"].tolist(),
    }
    for column, name in (("absolute", "&gt; 100"), ("relative", "&gt; 1000 x")):
        if column in rows.columns:
            cells[name] = ["yes" if flag else "no" for flag in rows[column]]
    fig = new_figure(
        title, "Each token and channel once, at the layer where it is largest.", height=30 + 24 * len(rows)
    )
    fig.add_trace(
        go.Table(
            header={"values": [f"<b>{name}</b>" for name in cells], "align": "left", "fill_color": "#e4e7eb"},
            cells={"values": list(cells.values()), "align": "left", "height": 24, "fill_color": "white"},
        )
    )
    fig.update_layout(margin={"l": 12, "b": 8})
    return fig
