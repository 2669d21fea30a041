"""Bootstrap intervals of a difference between two groups of sequences that have nothing to do with each other."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from sinklens.errors import InputError
from sinklens.evidence.bootstrap import MIN_PAIRS, RESAMPLES

_CHUNK = 256  # columns whose resampled means are held at once: 10 MB


class Differences(NamedTuple):
    """Differences of means by column, with their intervals; NaN where there is none."""

    value: Float[np.ndarray, " column"]
    low: Float[np.ndarray, " column"]
    high: Float[np.ndarray, " column"]


def difference_intervals(
    first: Float[np.ndarray, "sequence column"],
    second: Float[np.ndarray, "other_sequence column"],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Differences:
    """Means of one group minus means of the other, column by column, with bootstrap intervals over sequences.

    Bias-corrected and accelerated (BCa); each group is resampled by itself, all columns (heads) together. Equal to
    ``scipy.stats.bootstrap`` of two unpaired samples but for the draws. Where the values of both groups are constant
    the interval is the difference itself; where all resampled differences lie on one side of it, the percentile one.

    Args:
        first: One row per sequence, one column per head or other quantity.
        second: The same for the other group.
        confidence: Nominal coverage of each column's interval by itself: of 100 equal heads 5 will differ.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Returns:
        Differences and intervals; no interval (NaN) where a group has fewer than 5 sequences or a value is not finite.

    Raises:
        InputError: Other numbers of columns, or ``confidence`` outside 0 to 1.

    Source: Efron (1987), Better bootstrap confidence intervals.

    Example:
        >>> found = difference_intervals(np.array([[1.0], [2.0], [3.0], [2.0], [2.0]]), np.zeros((6, 1)))
        >>> found.value.tolist(), bool(1 < found.low[0] < 2 < found.high[0] < 3)
        ([2.0], True)
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(f"Expected [sequence column] with equal columns, got {first.shape} and {second.shape}.")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, got {confidence}.")
    first, second = first.astype(np.float64), second.astype(np.float64)
    count = first.shape[1]
    nothing = np.full(count, math.nan)
    if not len(first) or not len(second):
        return Differences(nothing, nothing, nothing)
    value = first.mean(0) - second.mean(0)
    low, high = nothing.copy(), nothing.copy()
    if min(len(first), len(second)) >= MIN_PAIRS:
        rng = np.random.default_rng(seed)
        drawn_first, drawn_second = (_counts(rng, len(group), resamples) for group in (first, second))
        tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
        for start in range(0, count, _CHUNK):
            some = slice(start, start + _CHUNK)
            drawn = drawn_first @ first[:, some] - drawn_second @ second[:, some]
            low[some], high[some] = _intervals(first[:, some], second[:, some], value[some], drawn, tails)
    return Differences(value, low, high)


def _counts(rng: np.random.Generator, n: int, resamples: int) -> Float[np.ndarray, "resample sequence"]:
    """Share of each sequence in each resample."""
    shares: Float[np.ndarray, "resample sequence"] = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    return shares


def _intervals(
    first: np.ndarray, second: np.ndarray, value: np.ndarray, drawn: np.ndarray, tails: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    ties = 1e-12 * np.maximum(np.abs(first).max(0), np.abs(second).max(0))
    below = ((drawn < value - ties).mean(0) + (drawn <= value + ties).mean(0)) / 2
    # influence of each sequence on the difference, from leaving it out
    parts = [(group - group.mean(0)) / len(group) for group in (first, second)]
    spread = (parts[0] ** 2).sum(0) + (parts[1] ** 2).sum(0)
    skew = (parts[0] ** 3).sum(0) - (parts[1] ** 3).sum(0)
    low, high = np.full(len(value), math.nan), np.full(len(value), math.nan)
    for column in range(len(value)):
        if not np.isfinite(value[column]):
            continue
        if np.ptp(first[:, column]) == 0 and np.ptp(second[:, column]) == 0:
            low[column] = high[column] = value[column]
            continue
        levels = tails
        if 0 < below[column] < 1 and spread[column] > 0:
            bias, acceleration = ndtri(below[column]), skew[column] / (6 * spread[column] ** 1.5)
            shifted = bias + ndtri(tails)
            adjusted = ndtr(bias + shifted / (1 - acceleration * shifted))
            levels = adjusted if np.isfinite(adjusted).all() else tails
        low[column], high[column] = np.quantile(drawn[:, column], levels)
    return low, high
