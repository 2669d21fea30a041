"""Bootstrap intervals of paired differences: how sure an average effect is, given that sequences differ."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from sinklens.errors import InputError
from sinklens.wording import several

RESAMPLES = 5000
MIN_PAIRS = 5
"""With fewer, resampling cannot show values that were not seen and its intervals are far too short."""

Statistic = Callable[[Float[np.ndarray, "column sample"]], Float[np.ndarray, " sample"]]


@dataclass(frozen=True)
class Interval:
    """A mean (or other statistic) with its bootstrap interval.

    Attributes:
        value: The statistic of the data; NaN without any.
        low: Lower end; NaN where no interval can be given.
        high: Upper end.
        n: Number of pairs it rests on (sequences, prompts); pairs that are NaN are left out.
        method: ``"BCa"``, ``"percentile"`` where BCa is undefined, or ``"none"``.
        note: Why it is not BCa; empty when it is.
    """

    value: float
    low: float
    high: float
    n: int
    method: Literal["BCa", "percentile", "none"]
    note: str = ""

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        """``0.31 [0.25, 0.38]``."""
        if math.isnan(self.low):
            return f"{self.value:.3g} [n/a: {self.note}]"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def paired_interval(
    differences: Sequence[float] | Float[np.ndarray, " pair"],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of paired differences: changed minus clean on the same sequence, one number a sequence.

    Bias-corrected and accelerated bootstrap (BCa) over the pairs; equal to ``scipy.stats.bootstrap`` but for the draws,
    and about ten times faster, because all means come from one product with resampling counts that are kept. In
    degenerate cases, as ``method`` and ``note`` say:

    - all differences equal (a change without any effect): the percentile interval, which is that one value;
    - all resampled means on one side of the mean, so that BCa is undefined: the percentile interval;
    - fewer than 5 pairs, or an infinite difference: no interval (NaN).

    Args:
        differences: One a pair; NaN where a pair has none (left out).
        confidence: Nominal coverage.
        resamples: Bootstrap draws.
        seed: Of the draws. Equal seeds and equal n resample the same pairs, so measures on the same sequences share
            their draws.

    Raises:
        InputError: ``confidence`` outside 0 to 1.

    Source: Efron (1987), Better bootstrap confidence intervals.

    >>> paired_interval([0.1, 0.3, 0.2, 0.4, 0.2, 0.3])
    Interval(value=0.25, low=0.1..., high=0.3..., n=6, method='BCa', note='')
    >>> str(paired_interval([0.0] * 6)), str(paired_interval([0.5, 0.6]))
    ('0 [0, 0]', '0.55 [n/a: 2 pairs, an interval needs 5]')
    """
    values = np.asarray(differences, dtype=np.float64)
    kept = values[None, ~np.isnan(values)]
    return statistic_interval(kept, _first_mean, confidence=confidence, resamples=resamples, seed=seed)


def statistic_interval(
    columns: Float[np.ndarray, "column pair"],
    statistic: Statistic,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of a function of column means, such as a difference of two ratios; pairs are resampled whole.

    Args:
        columns: Per pair the numbers whose means the statistic takes.
        statistic: From means ``[column sample]`` to values ``[sample]``; NaN where it is undefined (such resamples
            are left out, and the note says so).
        confidence: Nominal coverage.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        InputError: ``confidence`` outside 0 to 1.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, got {confidence}.")
    n = columns.shape[1]
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, "none", "no pairs")
    means = columns.mean(1)
    value = float(statistic(means[:, None])[0])
    if not np.isfinite(columns).all():
        return Interval(value, math.nan, math.nan, n, "none", "not all pairs are finite")
    if n < MIN_PAIRS:
        return Interval(value, math.nan, math.nan, n, "none", f"{several(n, 'pair')}, an interval needs {MIN_PAIRS}")
    if math.isnan(value):
        return Interval(value, math.nan, math.nan, n, "none", "the statistic is undefined on these pairs")
    if bool((columns == columns[:, :1]).all()):
        return Interval(value, value, value, n, "percentile", "all differences are equal")
    drawn = statistic((_counts(n, resamples, seed) @ columns.T).T / n)
    left_out = statistic((means[:, None] * n - columns) / (n - 1))
    undefined = int(np.isnan(drawn).sum())
    drawn = drawn[~np.isnan(drawn)]
    note = f"undefined in {undefined} of {resamples} resamples" if undefined else ""
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    adjusted = _bca_levels(value, drawn, left_out, tails, tie=1e-12 * float(np.abs(columns).max()))
    if adjusted is None:
        low, high = np.quantile(drawn, tails)
        note = "; ".join(filter(None, ["BCa is undefined here", note]))
        return Interval(value, float(low), float(high), n, "percentile", note)
    low, high = np.quantile(drawn, adjusted)
    return Interval(value, float(low), float(high), n, "BCa", note)


def _first_mean(means: Float[np.ndarray, "column sample"]) -> Float[np.ndarray, " sample"]:
    first: Float[np.ndarray, " sample"] = means[0]
    return first


def _bca_levels(
    value: float,
    drawn: Float[np.ndarray, " resample"],
    left_out: Float[np.ndarray, " pair"],
    tails: Float[np.ndarray, " end"],
    tie: float,
) -> Float[np.ndarray, " end"] | None:
    """Quantile levels of the BCa interval; None where bias or acceleration is undefined."""
    below = ((drawn < value - tie).mean() + (drawn <= value + tie).mean()) / 2
    deviations = left_out.mean() - left_out
    spread = (deviations**2).sum()
    if not 0 < below < 1 or not spread > 0:
        return None
    bias = ndtri(below)
    acceleration = (deviations**3).sum() / (6 * spread**1.5)
    shifted = bias + ndtri(tails)
    levels: Float[np.ndarray, " end"] = ndtr(bias + shifted / (1 - acceleration * shifted))
    return levels if np.isfinite(levels).all() else None


@lru_cache(maxsize=4)
def _counts(n: int, resamples: int, seed: int) -> Float[np.ndarray, "resample pair"]:
    """How often each pair is in each resample: n draws with replacement."""
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    cells = drawn + n * np.arange(resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=n * resamples).reshape(resamples, n)
    return counts.astype(np.float32)  # exact, and half the memory
