"""Massive activations by channel, as a table: where each lives and its largest entry."""

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.style import empty_figure, layer_spans, new_figure, number, require_columns, token_label

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


def strongest_channels(massive: pd.DataFrame, episodes: pd.DataFrame | None = None, n: int = 20) -> pd.DataFrame:
    """Pick the `n` channels with the largest entries, each once, with its largest entry.

    An activation that lives in one channel at one token of every text would fill a table of entries by itself. Where
    entries are massive by one of the criteria, their channels alone are listed.

    Args:
        massive: As for :func:`strongest_activations`.
        episodes: A census's `massive_episodes`, where it has them.
        n: Rows returned.

    Returns:
        A row of `strongest_activations` for each channel, largest |value| first, and from `episodes` `layers`: the
        layers after which at least half of the sequences have a massive entry in this channel, as spans
        (``2-8, 11-27``; empty for none), at position 0 or at others, by whichever criterion.
    """
    best = strongest_activations(massive, len(massive)).drop_duplicates("channel")
    if {"absolute", "relative"} <= {*best.columns} and (over := best["absolute"] | best["relative"]).any():
        best = best[over.astype(bool)]  # of the others the table lists no large entry, and maybe not the largest one
    best = best.head(n).reset_index(drop=True)
    if episodes is None:
        return best
    alive: dict[int, set[int]] = {}
    for channel, first, last in zip(*(episodes[name] for name in ("channel", "appears", "leaves_after")), strict=True):
        alive.setdefault(int(channel), set()).update(range(int(first), int(last) + 1))
    return best.assign(layers=[layer_spans(alive.get(int(channel), ())) for channel in best["channel"]])


@draws(
    CENSUS,
    needs={
        "massive": ("sequence", "layer", "position", "channel"),
        "massive_episodes": ("criterion", "bucket", "channel", "episode"),
    },
    wants=("massive_episodes",),
    whole={"Strongest massive activations": {}},
)
def massive_table(massive: pd.DataFrame, episodes: pd.DataFrame | None = None, *, n: int = 20) -> go.Figure:
    """List the channels with the largest entries of the hidden states: the layers of each, and its largest entry.

    Args:
        massive: A census, or its table `massive`; `absolute` and `relative` (over the two thresholds) show when
            present.
        episodes: Its `massive_episodes`: after which layers at least half of the sequences have a massive entry in a
            channel. Without it that column is left out.
        n: Channels shown.
    """
    rows = strongest_channels(massive, episodes, n)
    title = "Strongest hidden-state entries by channel"
    if rows.empty:
        return empty_figure(title, "Not applicable: no hidden state was recorded.")
    cells = {"channel": rows["channel"].tolist()}
    if "layers" in rows:
        cells["massive after layers"] = [spans or "none" for spans in rows["layers"]]
    cells |= {
        "largest h": [number(v) for v in rows["value"]],
        "x median": [number(v) for v in rows["ratio"]],
        "after layer": ["embed" if layer < 0 else str(layer) for layer in rows["layer"]],
        "sequence": rows["sequence"].tolist(),
        "position": rows["position"].tolist(),
        "token": [token_label(str(token), 24) for token in rows["token"]],
    }
    for column, name in (("absolute", "&gt; 100"), ("relative", "&gt; 1000 x")):
        if column in rows.columns:
            cells[name] = ["yes" if flag else "no" for flag in rows[column]]
    note = "Each channel once, with its largest entry of all texts, layers and tokens."
    if "layers" in rows:
        note += (
            " Massive after layers: at least half of the texts have such an entry in it, at position 0 or at others."
        )
    fig = new_figure(title, note, height=90 + 24 * len(rows))
    fig.add_trace(
        go.Table(
            columnwidth=[2.4 if "layers" in name else 1 for name in cells],
            header={"values": [f"<b>{name}</b>" for name in cells], "align": "left", "fill_color": "#e4e7eb"},
            cells={"values": list(cells.values()), "align": "left", "height": 24, "fill_color": "white"},
        )
    )
    fig.update_layout(margin={"l": 12, "b": 8})
    return fig
