"""Layer x head grid of one number per head."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.axes import log_colorbar
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.head_grid import HeadGrid, draw_heads, grid_height
from sinklens.plots.style import SEQUENTIAL, colorbar, empty_figure, new_figure, number, require_columns, signed_colours
from sinklens.wording import several

HeadValue = Literal[
    "sink_rate",
    "importance",
    "sink_rate_first",
    "importance_first",
    "ratio",
    "null",
    "entropy",
    "distance",
    "bos_mass",
    "special_mass",
    "missing_mass",
    "delta_logit",
    "drain",
    "drain_wo",
]


@dataclass(frozen=True)
class _Value:
    """How one column of the heads table is titled and coloured."""

    title: str
    unit: str
    bar: str
    scale: Literal["share", "positive", "ratio", "signed"]


_RATE: Final = "Share of sequences in which the key receives more than the threshold."
_MEAN: Final = "Mean attention per query that sees the key."
_VALUES: Final[dict[str, _Value]] = {
    "sink_rate": _Value("Sink rate at each head's strongest key", _RATE, "sink rate (share)", "share"),
    "importance": _Value("Attention received by each head's strongest key", _MEAN, "attention (share)", "share"),
    "sink_rate_first": _Value("Sink rate at position 0", _RATE, "sink rate (share)", "share"),
    "importance_first": _Value("Attention received by position 0", _MEAN, "attention (share)", "share"),
    "ratio": _Value(
        "Attention received by the strongest key against the causal-uniform null",
        "1 = what even attention would give; log colours.",
        "times the null (log)",
        "ratio",
    ),
    "null": _Value("Causal-uniform null at each head's strongest key", _MEAN, "attention (share)", "share"),
    "entropy": _Value("Entropy of attention", "Mean over queries.", "entropy (nats)", "positive"),
    "distance": _Value("Distance attended over", "Mean over queries.", "distance (tokens)", "positive"),
    "bos_mass": _Value("Attention on BOS", "Mean over queries.", "attention (share)", "share"),
    "special_mass": _Value("Attention on special tokens", "Mean over queries.", "attention (share)", "share"),
    "missing_mass": _Value(
        "Attention mass on no token", "1 - row sum: a learned sink or gate.", "missing mass (share)", "share"
    ),
    "delta_logit": _Value(
        "Logit margin of the strongest key", "Its logit above the other keys'.", "margin (logits)", "signed"
    ),
    "drain": _Value(
        "Value norm of the strongest key relative to other keys",
        "Ratio of L2 norms; below 1 = drained; log colours.",
        "norm ratio (log)",
        "ratio",
    ),
    "drain_wo": _Value(
        "Norm of W_O v of the strongest key relative to other keys",
        "Ratio of L2 norms; below 1 = drained; log colours.",
        "norm ratio (log)",
        "ratio",
    ),
}

_HOVER: Final = (
    ("sink_position", "strongest key at position", ".0f"),
    ("importance", "importance", ".3f"),
    ("null", "causal-uniform null", ".4f"),
    ("ratio", "ratio to null", ".3g"),
    ("sink_rate", "sink rate", ".2f"),
    ("sink_rate_first", "sink rate, position 0", ".2f"),
    ("entropy", "entropy, nats", ".2f"),
    ("drain", "value drain |v| / others", ".3g"),
)


@draws(CENSUS, needs={"heads": ("layer", "head")}, settings={"n_layers": "model.n_layers"})
def sink_heatmap(
    heads: pd.DataFrame,
    *,
    value: HeadValue = "sink_rate",
    n_layers: int | None = None,
    hover: Literal["all", "value"] = "all",
) -> go.Figure:
    """Draw one number per head as a layer x head grid, layer 0 at the top.

    Shares run from 0 to 1 on every model, so that pictures can be compared. Ratios (to the null, of value
    norms) have log colours centred on 1, signed values colours centred on 0, both symmetric and reaching the
    largest magnitude; a ratio beyond 1,000-fold is clipped and the subtitle counts such cells. A cell is grey
    when its head has no such number (NaN) or the layer has no attention; the subtitle lists those layers.

    Args:
        heads: A census, or one row per head with `layer`, `head` and `value`. The other columns of a census's heads
            table show in the hover when present.
        value: Column to colour.
        n_layers: Layers of the model, so that trailing layers without attention keep their (grey) row. A census knows
            them.
        hover: Whether the hover names all of a head's numbers or, for a smaller file, only the coloured one.

    Raises:
        InputError: On an unknown `value`, a missing column, or several rows for a head.
    """
    if value not in _VALUES:
        raise InputError(f"sink_heatmap can colour {', '.join(_VALUES)}, not {value!r}.")
    require_columns(heads, ("layer", "head", value), "sink_heatmap")
    look = _VALUES[value]
    if heads.empty or heads[value].isna().all():
        return empty_figure(look.title, f"Not applicable: no head of this model has a value for {value}.")
    grid = HeadGrid(heads, n_layers)
    raw = grid.fill(heads[value])
    z, options, clipped = _colours(raw, look)
    notes = [look.unit, *grid.grey(raw)]
    if clipped:
        notes.append(
            f"Colours are clipped: {several(clipped, 'cell')} {'lies' if clipped == 1 else 'lie'} beyond the "
            f"ends of the colour bar."
        )
    listed = _HOVER if hover == "all" else ()
    fig = new_figure(look.title, " ".join(notes), height=grid_height(grid.rows))
    draw_heads(fig, z, grid.texts(lambda record, name: _hover_text(record, name, value, listed)), **options)
    return fig


def _hover_text(record: dict[Any, Any], name: str, value: str, listed: tuple[tuple[str, str, str], ...]) -> str:
    lines = [name]
    lines += [f"{what}: {number(record[key], spec)}" for key, what, spec in listed if key in record]
    if value not in {key for key, _, _ in listed}:
        lines.append(f"{value}: {number(record[value])}")
    return "<br>".join(lines)


def _colours(raw: "np.ndarray[Any, np.dtype[np.float64]]", look: _Value) -> tuple[Any, dict[str, Any], int]:
    """Return what is coloured, the trace's colour options, and how many cells lie outside the colours."""
    if look.scale == "share":
        bar = colorbar(look.bar, tickvals=[0, 0.2, 0.4, 0.6, 0.8, 1])
        clipped = int((raw > 1 + 1e-6).sum() + (raw < -1e-6).sum())
        return raw, {"zmin": 0, "zmax": 1, "colorscale": SEQUENTIAL, "colorbar": bar}, clipped
    if look.scale == "positive":
        top = float(np.nanmax(raw)) or 1.0
        return raw, {"zmin": 0, "zmax": top, "colorscale": SEQUENTIAL, "colorbar": colorbar(look.bar)}, 0
    if look.scale == "signed":
        return raw, signed_colours(float(np.nanmax(np.abs(raw)))) | {"colorbar": colorbar(look.bar)}, 0
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(raw)
    finite = np.abs(logs[np.isfinite(logs)])
    bound = float(min(3.0, max(0.1, finite.max(initial=0.1))))
    bar = log_colorbar(look.bar, 10**-bound, 10**bound)
    clipped = int((np.abs(logs) > bound + 1e-6).sum())
    shown = np.where(np.isnan(logs), np.nan, np.clip(logs, -bound, bound))
    return shown, signed_colours(bound) | {"colorbar": bar}, clipped
