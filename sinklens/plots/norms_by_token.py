"""Norms of one sequence, layer by token."""

from typing import Final, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import add_token_axes, grid_background, layer_axis, log_colorbar
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.style import SEQUENTIAL, colorbar, empty_figure, float32, layer_list, new_figure, require_columns

NormValue = Literal["resid_norm", "value_norm", "wo_value_norm", "received"]

_TITLES: Final[dict[str, tuple[str, str]]] = {
    "resid_norm": ("Residual norm by layer and token", "L2 norm (log)"),
    "value_norm": ("Value norm by layer and token", "L2 norm"),
    "wo_value_norm": ("Norm of W_O v by layer and token", "L2 norm"),
    "received": ("Attention received by layer and token", "attention (share)"),
}


_DECADES: Final = 100.0
"""Values that span more than this have log colours."""
_MEANS: Final = {
    "value_norm": ", mean over KV heads",
    "wo_value_norm": ", mean over heads",
    "received": ", mean over heads, per query that sees the token",
}


@draws(
    CENSUS,
    needs={"profile": ("layer", "position")},
    whole={
        "Residual norm by layer and token": {"value": "resid_norm"},
        "Value norm by layer and token": {"value": "value_norm"},
        "Attention received by layer and token": {"value": "received"},
    },
)
def norms_by_token(profile: pd.DataFrame, *, value: NormValue = "resid_norm", limit: int = 1024) -> go.Figure:
    """Draw how long every token's hidden state (or value vector) is at every layer, layer 0 or the embedding on top.

    Residual norms span orders of magnitude once a peak appears and get log colours from the smallest to the
    largest norm, as does what else spans two decades or more; other colours are linear and start at 0. Nothing is
    clipped. Layers without the number (no attention: no values) are grey and listed; the embedding's row,
    labelled "embed", exists for residual norms only.

    Args:
        profile: A census, or one row per layer and position with `layer`, `position`, `token` and `value`.
        value: Column to colour.
        limit: Tokens drawn; of a longer sequence the first ones, and the subtitle says so.

    Raises:
        InputError: On an unknown `value`, a missing column, or several sequences.
    """
    if value not in _TITLES:
        raise InputError(f"norms_by_token can colour {', '.join(_TITLES)}, not {value!r}.")
    require_columns(profile, ("layer", "position", "token", value), "norms_by_token")
    title, unit = _TITLES[value]
    if not (profile[value] > 0).any():
        return empty_figure(title, f"Not applicable: no layer of this model has a {value} above 0.")
    table = profile if value == "resid_norm" else profile[profile["layer"] >= 0]
    length = int(table["position"].max()) + 1
    table = table[table["position"] < limit]
    tokens = table.drop_duplicates("position").sort_values("position")["token"].astype(str).tolist()
    grid = table.pivot(index="layer", columns="position", values=value).sort_index()
    layers = [int(layer) for layer in grid.index]
    raw = grid.to_numpy(dtype=float)

    without = [layer for layer, row in zip(layers, raw, strict=True) if np.isnan(row).all()]
    notes = [f"One sequence of the batch{_MEANS.get(value, '')}."]
    if length > limit:
        notes.append(f"First {limit:,} of {length:,} tokens.")
    if without:
        notes.append(f"Grey rows: not applicable in {layer_list(without)}.")
    positive = raw[raw > 0]
    if value == "resid_norm" or positive.max() >= _DECADES * positive.min():
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(raw > 0, np.log10(raw), np.nan)
        low, high = float(np.nanmin(z)), float(np.nanmax(z))
        high = max(high, low + 0.01)
        bar = log_colorbar(unit if unit.endswith("(log)") else f"{unit}, log", 10**low, 10**high)
        notes.append("Colour is the logarithm.")
        zeros = int((raw == 0).sum())
        notes += [f"Grey cells: {zeros} of exactly 0 have no logarithm."] if zeros else []
    else:
        z, low, high = raw, 0.0, float(np.nanmax(raw)) or 1.0
        bar = colorbar(unit)

    fig = new_figure(title, " ".join(notes), height=min(760, max(200, 24 * len(layers))) + 40)
    fig.add_trace(
        go.Heatmap(
            z=float32(z),
            customdata=float32(raw),
            x=np.arange(len(tokens)),
            y=layers,
            zmin=low,
            zmax=high,
            colorscale=SEQUENTIAL,
            colorbar=bar,
            hoverongaps=False,
            hovertemplate="layer %{y}<br>token %{x}<br>%{customdata:.4g}<extra></extra>",
        )
    )
    add_token_axes(fig, x=tokens, x_title="token (one column per position)")
    fig.update_layout(yaxis=layer_axis(layers) | {"range": [layers[-1] + 0.5, layers[0] - 0.5]})
    grid_background(fig)
    return fig
