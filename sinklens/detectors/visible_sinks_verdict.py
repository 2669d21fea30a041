"""What sliding windows do to the sink figures, in words."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sinklens.detectors.wording import layer_runs
from sinklens.wording import several

HARD = 0.5
"""Share of its attention that a head must give position 0 to reach eps, from which the verdict mentions it."""


def describe_windows(heads: pd.DataFrame, settings: Mapping[str, Any]) -> list[str]:
    """Where windows put eps out of reach, or nearly, and what the count is per query that sees the key.

    Importance divides by all later queries; in a layer whose window hides position 0 from most of them no head can
    be a sink head there, whatever it does with the token while it sees it.
    """
    if heads.empty or "ceiling_first" not in heads or heads["importance"].isna().all():
        return []
    eps = float(settings["eps"])
    ceilings = heads.groupby("layer")["ceiling_first"].max()  # one number a layer
    beyond, hard = (
        ceilings[ceilings <= eps],
        ceilings[(ceilings > eps) & (ceilings < 1 - 1e-9) & (eps / ceilings > HARD)],
    )
    out = []
    if len(beyond):
        out.append(
            f"Out of reach: in {several(len(beyond), 'layer')} ({layer_runs(beyond.index)}) windows show position 0 "
            f"to at most {beyond.max():.3f} of the queries on average, so no head there can give it an importance "
            f"above {eps}."
        )
    if len(hard):
        share = eps / hard.max()
        out.append(
            f"Hard to reach: in {several(len(hard), 'layer')} ({layer_runs(hard.index)}) windows show position 0 to at "
            f"most {hard.max():.3f} of the queries on average, so a head there has to give it {share:.2f} of its "
            f"attention or more for an importance of {eps}."
        )
    visible, plain = heads["is_sink_visible"].astype(bool), heads["is_sink"].astype(bool)
    if (visible != plain).any():
        out.append(
            f"Per query that can see the key, {visible.sum()} of {several(len(heads), 'head')} are sink heads, and "
            f"{plain.sum()} by importance, which divides by every later query; {(visible & ~plain).sum()} by the first "
            f"count alone, {(plain & ~visible).sum()} by the second alone."
        )
    return out
