"""Interval of a share of successes."""

import math

from scipy.special import ndtri

from sinklens.errors import InputError


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; right also for few trials and for shares of 0 and 1. NaN without trials.

    Args:
        successes: How many.
        n: Of how many.
        confidence: Nominal coverage.

    Raises:
        InputError: More successes than trials, or ``confidence`` outside 0 to 1.

    Source: Wilson (1927), Probable Inference, the Law of Succession, and Statistical Inference.

    Example:
        >>> low, high = wilson_interval(10, 10)
        >>> round(low, 3), high
        (0.722, 1.0)
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, got {confidence}.")
    if not 0 <= successes <= n:
        raise InputError(f"Expected 0 to n successes, got {successes} of {n}.")
    if n == 0:
        return math.nan, math.nan
    z = float(ndtri((1 + confidence) / 2))
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else middle - half
    return low, 1.0 if successes == n else middle + half
