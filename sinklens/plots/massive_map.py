"""Massive activations of one layer: token by channel, flat or in three dimensions."""

from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import add_token_axes, grid_background, named_axis, thinned
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.pooling import MOST_TOKENS, pooled, span_label
from sinklens.plots.style import (
    CATEGORICAL,
    colorbar,
    empty_figure,
    float32,
    new_figure,
    number,
    require_columns,
    signed_colours,
    visible_text,
)

_TITLE: Final = "Residual stream, token by channel"
_COLUMNS: Final = ("layer", "position", "token", "channel", "value", "median")


@draws(
    CENSUS,
    needs={"channel_profile": ("layer", "channel", "position")},
    made_by={"channel_profile": 'measure(model, tokens, "channel_profile")'},
)
def massive_map(profile: pd.DataFrame, *, layer: int | None = None, kind: Literal["2d", "3d"] = "2d") -> go.Figure:
    """Draw the channels with the largest hidden-state entries of one layer, for every token of a sequence.

    Flat ("2d"): channels downwards, strongest first, tokens to the right, signed entries with colours centred on 0 that
    reach the largest magnitude; nothing is clipped. In space ("3d"): one line per channel, height ``|h|``, as the
    published pictures are drawn; it uses WebGL, of which browsers allow few on one page, so draw one. Beyond about
    1,000 tokens neighbours are pooled to the entry of largest magnitude, and the subtitle says so.

    Args:
        profile: A census, or what `measure(model, tokens, "channel_profile")` gives. Columns `layer`,
            `position`, `token`, `channel`, `value` (signed), `median` (of |h| in the layer).
        layer: Which layer, -1 for the embedding; by default the one with the largest entry.
        kind: "2d" or "3d".

    Raises:
        InputError: An unknown kind, a layer that is not there, several sequences, or a missing column.

    Source: after Sun et al. 2024 (arXiv 2402.17762), figure 1; all but the strongest channels are left out.
    """
    if kind not in ("2d", "3d"):
        raise InputError(f'massive_map draws kind "2d" or "3d", not {kind!r}.')
    require_columns(profile, _COLUMNS, "massive_map")
    if profile.empty:
        return empty_figure(_TITLE, "Not applicable: no hidden state was recorded.")
    if layer is None:
        layer = int(profile["layer"].iloc[int(np.nanargmax(profile["value"].abs()))])
    rows = profile[profile["layer"] == layer]
    if rows.empty:
        have = ", ".join(map(str, sorted(map(int, profile["layer"].unique()))))
        raise InputError(f"massive_map found no layer {layer}; the profile has {have}.")
    channels = [int(channel) for channel in rows["channel"].drop_duplicates()]
    tokens = rows.drop_duplicates("position").sort_values("position")["token"].astype(str).tolist()
    grid = rows.pivot(index="channel", columns="position", values="value").loc[channels].to_numpy(dtype=float)
    cell = -(-len(tokens) // MOST_TOKENS)
    z = pooled(grid, cell)
    median = float(rows["median"].iloc[0])
    where = "before the first layer" if layer < 0 else f"after layer {layer}"
    largest = float(np.nanmax(np.abs(z)))
    times = f" = {number(largest / median)} times the median |h|" if median > 0 else ""
    notes = [f"The {len(channels)} channels with the largest |h|. Largest entry: {number(largest)}{times}."]
    if cell > 1:
        notes.append(f"Pooled: each column is the entry of largest magnitude of {cell} tokens.")
    title = f"{_TITLE}, {where}"
    labels = [tokens[i * cell] for i in range(z.shape[1])]
    hover = [span_label(tokens, i * cell, min((i + 1) * cell, len(tokens))) for i in range(z.shape[1])]
    names = [f"{channel}" for channel in channels]
    if kind == "3d":
        return _in_space(title, " ".join(notes), z, labels, hover, names)

    fig = new_figure(title, " ".join(notes), height=max(200, 30 * len(channels)))
    fig.add_trace(
        go.Heatmap(
            z=float32(z),
            x=np.arange(z.shape[1]),
            y=np.arange(len(channels)),
            **signed_colours(largest),
            colorbar=colorbar("h, one entry"),
            customdata=float32(np.abs(z) / median) if median > 0 else None,
            hoverongaps=False,
            hovertemplate="token %{x}<br>channel %{y}<br>h = %{z:.4g}"
            + (" (%{customdata:.4g} times the median)" if median > 0 else "")
            + "<extra></extra>",
        )
    )
    first = " (first of each column)" if cell > 1 else ""
    add_token_axes(fig, x=labels, x_hover=hover, x_title=f"token{first}")
    fig.update_layout(yaxis=named_axis(names, down=True, title={"text": "channel"}))
    grid_background(fig)
    return fig


def _in_space(title: str, notes: str, z: Any, labels: list[str], hover: list[str], names: list[str]) -> go.Figure:
    fig = new_figure(title, notes, height=480)
    x = np.arange(z.shape[1])
    for row, name in enumerate(names):
        fig.add_trace(
            go.Scatter3d(
                x=x,
                y=np.full(len(x), row),
                z=float32(np.abs(z[row])),
                name=f"channel {name}",
                mode="lines",
                line={"color": CATEGORICAL[row % len(CATEGORICAL)], "width": 5},
                customdata=float32(z[row]),
                text=hover,
                hovertemplate=f"token %{{text}}<br>channel {name}<br>h = %{{customdata:.4g}}<extra></extra>",
            )
        )
    shown = thinned(len(labels), 14)
    along = {"tickmode": "array", "tickvals": shown, "ticktext": [_plain(labels[i]) for i in shown]}
    fig.update_layout(
        scene={
            "xaxis": along | {"title": {"text": "token"}},
            "yaxis": named_axis(names, range=None, title={"text": "channel"}),
            "zaxis": {"title": {"text": "|h|"}, "rangemode": "tozero"},
            "aspectmode": "manual",
            "aspectratio": {"x": 2.2, "y": 1.15, "z": 1.0},
            # without perspective, heights can be compared along the axis
            "camera": {
                "eye": {"x": -0.9, "y": -1.5, "z": 0.7},
                "center": {"z": -0.12},
                "projection": {"type": "orthographic"},
            },
        },
        margin={"l": 0, "r": 0},
        showlegend=False,
    )
    return fig


def _plain(token: str) -> str:
    """A tick of a 3-D axis, which is drawn as it stands: neither escaped nor with what looks like markup."""
    shown = visible_text(token)
    shown = shown if len(shown) <= 8 else f"{shown[:7]}…"
    return shown.replace("<", "⟨").replace(">", "⟩")
