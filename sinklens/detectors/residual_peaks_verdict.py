"""Residual peaks in words."""

from typing import Any

import pandas as pd

from sinklens.detectors.wording import layer_runs, row_at
from sinklens.wording import several

PEAK = 3.0
"""Times the median norm of a sequence's tokens from which a token is a residual peak."""
MILD_PEAK = 1.5
_RULE = f"{PEAK:g} times their sequence's median or more"


def describe_peaks(layers: pd.DataFrame, peaks: pd.DataFrame, norms: pd.DataFrame) -> list[str]:
    """Where the largest residual norm stands, how large it is and how it grows, and the peaks elsewhere.

    Args:
        layers: ``layer, peak_ratio``.
        peaks: The table of tokens that stand out.
        norms: ``layer, position, resid_norm, n_sequences``.
    """
    blocks = layers[(layers["layer"] >= 0) & layers["peak_ratio"].notna()].sort_values("layer")
    if blocks.empty:
        return []
    top = row_at(blocks, blocks["peak_ratio"].idxmax())
    size = f"after layer {int(top.layer)} a sequence's largest residual norm is {top.peak_ratio:.3g} times its median"
    if top.peak_ratio < MILD_PEAK:
        return [f"No residual peak: at most, {size} on average.", *_elsewhere(peaks, "Single tokens")]
    there = peaks[(peaks["layer"] == top.layer) & (peaks["n_largest"] > 0)]
    column, place, count = _place(there)
    where = _words(there, column, place)
    often = f"and it stands there in {count} of {several(there['n_of'].iloc[0], 'sequence')}"
    if not column:
        where, often = "at no fixed place", f"most often at position {place} ({count} of {there['n_of'].iloc[0]})"
    kind = "Residual peak" if top.peak_ratio >= PEAK else "Mild residual peak"
    high = blocks[blocks["peak_ratio"] >= PEAK]["layer"].astype(int)
    lasts = f"; {PEAK:g} times or more after {layer_runs(high)}" if len(high) else ""
    out = [f"{kind} {where}: {size} on average, {often}{lasts}."]
    out += _growth(norms, int(place), int(top.layer)) if column == "position" else []
    if not column:
        return out + _elsewhere(peaks, "Single tokens")
    return out + _elsewhere(peaks[peaks[column] != place], "Elsewhere")


def _place(there: pd.DataFrame) -> tuple[str, Any, int]:
    """The position, or else the token, where half of the sequences have their largest norm; or the best position."""
    half = there["n_of"].iloc[0] / 2
    for column in ("position", "token"):
        counts = there.groupby(column)["n_largest"].sum()
        if counts.max() >= half:
            return column, min(counts[counts == counts.max()].index), int(counts.max())
    counts = there.groupby("position")["n_largest"].sum()
    return "", min(counts[counts == counts.max()].index), int(counts.max())


def _words(there: pd.DataFrame, column: str, place: Any) -> str:
    if column == "token":
        return f"at the token {place!r} wherever it stands"
    names = there[there["position"] == place]["token"].unique()
    return f"at position {place}" + (f" ({names[0]!r})" if len(names) == 1 else "")


def _growth(norms: pd.DataFrame, position: int, block: int) -> list[str]:
    """The norm at one position from before the first layer on, and the other positions' beside it."""
    here = norms["position"] == position
    own: Any = norms[here].set_index("layer")["resid_norm"].sort_index()
    rest = norms[~here & (norms["n_sequences"] > 0)]
    totals = (rest["resid_norm"] * rest["n_sequences"]).groupby(rest["layer"]).sum(min_count=1)
    others = totals / rest["n_sequences"].groupby(rest["layer"]).sum()
    start, largest = own.index.min(), own[own.index >= 0].idxmax()
    if own[[start, block]].isna().any() or not own[start] > 0 or not others.get(start, 0) > 0:
        return []
    reached = f", and reaches {own[largest]:.3g} after layer {largest}" if largest != block else ""
    return [
        f"Growth: the norm there goes from {own[start]:.3g} before the first layer to {own[block]:.3g} after layer "
        f"{block} (x{own[block] / own[start]:.3g}; the other tokens' x{others[block] / others[start]:.3g}){reached}."
    ]


def _elsewhere(peaks: pd.DataFrame, prefix: str) -> list[str]:
    """The layer after which most tokens are peaks, and which token is it most often."""
    counts = peaks[(peaks["layer"] >= 0) & (peaks["n_peaks"] > 0)].groupby("layer")["n_peaks"].sum()
    if counts.empty:
        return []
    block = min(counts[counts == counts.max()].index)
    chosen = peaks[(peaks["layer"] == block) & (peaks["n_peaks"] > 0)]
    tokens = chosen.groupby("token")["n_peaks"].sum()
    name = min(tokens[tokens == tokens.max()].index)
    are = "are residual peaks" if counts.max() > 1 else "is a residual peak"
    sequences = several(chosen["n_of"].iloc[0], "sequence")
    return [
        f"{prefix}: after layer {block}, {several(int(counts.max()), 'token')} in {sequences} {are} ({_RULE}), "
        f"most often {name!r} ({tokens.max()})."
    ]
