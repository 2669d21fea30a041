"""Tables of effects by sequence, summed up: means and bootstrap intervals by intervention or any other group."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sinklens.evidence.bootstrap import paired_interval

MEASURES = ("delta_loss", "kl", "top1_agreement", "delta_logit_diff")


def summarise(table: pd.DataFrame, by: Sequence[str] = ("intervention",), *, seed: int = 0) -> pd.DataFrame:
    """Means over sequences, with 95 % bootstrap intervals of what is paired: the clean and the changed run.

    Each sequence counts once, whatever its length; sequences where a measure is NaN are left out of it.

    Args:
        table: Rows as :meth:`Effects.to_dataframe` gives them, one per sequence in every group.
        by: Columns that tell the groups apart; rows where one of them is missing form groups as well.
        seed: Of the bootstrap; all groups of one size share their resamples.

    Returns:
        One row per group in order of appearance: ``by``, n_sequences, n_tokens, mean clean_loss and loss; delta_loss,
        kl, top1_agreement and delta_logit_diff, each with ``_low`` and ``_high``; ``note`` where one is not BCa.
    """
    rows = []
    for key, group in table.groupby([*by], sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(by, key, strict=True))
        row["n_sequences"] = int(group["loss"].notna().sum())
        row["n_tokens"] = int(group["n_tokens"].sum())
        row |= {name: mean(group[name].to_numpy()) for name in ("clean_loss", "loss")}
        notes = []
        for name in MEASURES:
            interval = paired_interval(group[name].to_numpy(dtype=np.float64), seed=seed)
            row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
            if interval.note and interval.n:
                notes.append(f"{name}: {interval.note}")
        row["note"] = "; ".join(notes)
        rows.append(row)
    return pd.DataFrame(rows)


def mean(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN when nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
