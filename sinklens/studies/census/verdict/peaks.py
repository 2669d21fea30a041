"""Residual peaks in words."""

import pandas as pd

from sinklens.studies.census.verdict.wording import row_at

PEAK = 3.0
MILD_PEAK = 1.5


def describe_peaks(layers: pd.DataFrame) -> list[str]:
    """The residual norm at position 0 over the other tokens', and its growth."""
    blocks = layers[layers["layer"] >= 0]
    if blocks["resid_ratio"].isna().all():
        return []
    peak = row_at(blocks, blocks["resid_ratio"].idxmax())
    start = row_at(layers, layers["layer"].idxmin())
    largest = row_at(blocks, blocks["resid_norm_first"].idxmax())
    kind = "Residual peak" if peak.resid_ratio >= PEAK else "Mild residual peak"
    size = f"after block {peak.layer} its residual norm is {peak.resid_ratio:.1f} times the other tokens'"
    if peak.resid_ratio >= MILD_PEAK:
        headline = f"{kind} at position 0: {size}."
    else:
        headline = f"No residual peak at position 0: at most, {size}."
    reached = ""
    if largest.layer != peak.layer:
        reached = f", and reaches {largest.resid_norm_first:.3g} after block {largest.layer}"
    return [
        f"{headline} Growth: its norm goes from {start.resid_norm_first:.3g} before the first block to "
        f"{peak.resid_norm_first:.3g} after block {peak.layer} (x{peak.resid_norm_first / start.resid_norm_first:.1f}; "
        f"the other tokens' x{peak.resid_norm_others / start.resid_norm_others:.1f}){reached}."
    ]
