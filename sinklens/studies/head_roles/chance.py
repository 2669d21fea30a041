"""How far two sets of heads would overlap by chance: the null of every statement that two criteria agree."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom

from sinklens.errors import InputError


@dataclass(frozen=True)
class Overlap:
    """Two sets of heads and what chance gives.

    Attributes:
        n: Heads in all.
        first: Size of the first set.
        second: Size of the second set.
        both: Heads in both.
        jaccard: ``both / either``; NaN when a set is empty.
        expected: Overlap of two random sets of these sizes, ``first * second / n``; NaN when a set is empty.
        expected_jaccard: Their mean Jaccard index.
        p: Probability that random sets share at least as many heads (hypergeometric, one-sided).
        expected_in_layers: Overlap when each set keeps its number of heads in every layer, and is random otherwise.
        p_in_layers: The same probability under that null. It is the stricter question: two criteria that merely pick
            the same layers overlap more than ``expected``.
    """

    n: int
    first: int
    second: int
    both: int
    jaccard: float
    expected: float
    expected_jaccard: float
    p: float
    expected_in_layers: float
    p_in_layers: float


def overlap(
    first: Bool[np.ndarray, " head"], second: Bool[np.ndarray, " head"], layer: Int[np.ndarray, " head"]
) -> Overlap:
    """Compare two sets of heads with chance; everything but the counts is NaN when a set is empty.

    Args:
        first: Which heads are in the first set.
        second: Which are in the second.
        layer: Each head's layer.

    Raises:
        InputError: Arrays of different lengths.

    Example:
        >>> sets = np.array([True, True, False, False]), np.array([True, False, True, False])
        >>> found = overlap(*sets, np.array([0, 0, 1, 1]))
        >>> found.both, found.expected, round(found.p, 4), round(found.expected_jaccard, 4)
        (1, 1.0, 0.8333, 0.3889)
        >>> found.expected_in_layers, found.p_in_layers
        (1.0, 1.0)
    """
    if not first.shape == second.shape == layer.shape:
        raise InputError(f"Expected one entry for each head, got {first.shape}, {second.shape} and {layer.shape}.")
    n, a, b, both = len(first), int(first.sum()), int(second.sum()), int((first & second).sum())
    if not a or not b:
        return Overlap(n, a, b, both, *[math.nan] * 6)
    anywhere = _chances(n, a, b)
    within, expected = np.ones(1), 0.0
    for each in np.unique(layer):
        here = layer == each
        size, in_first, in_second = int(here.sum()), int(first[here].sum()), int(second[here].sum())
        within = np.convolve(within, _chances(size, in_first, in_second))
        expected += in_first * in_second / size
    shared = np.arange(len(anywhere))
    return Overlap(
        n,
        a,
        b,
        both,
        both / (a + b - both),
        a * b / n,
        float((anywhere * shared / (a + b - shared)).sum()),
        float(hypergeom.sf(both - 1, n, a, b)),
        expected,
        min(1.0, float(within[both:].sum())),
    )


def _chances(n: int, first: int, second: int) -> Float[np.ndarray, " shared"]:
    """Probability of 0, 1, ... shared heads."""
    chances: Float[np.ndarray, " shared"] = hypergeom.pmf(np.arange(min(first, second) + 1), n, first, second)
    return chances


@dataclass(frozen=True)
class TopOverlap:
    """The first k heads by two scores; heads that tie for the last places have an equal share in them.

    Attributes:
        k: Size of both sets.
        both: Heads in both: their expected number when ties for the last places are broken at random.
        jaccard: ``both / (2 k - both)``.
        expected: Overlap of two random sets, ``k * k / n``.
        tied_first: Heads that tie for the last places of the first set beyond those it has room for; 0 = no tie.
        tied_second: The same for the second.
    """

    k: int
    both: float
    jaccard: float
    expected: float
    tied_first: int
    tied_second: int


def top_overlap(first: Float[np.ndarray, " head"], second: Float[np.ndarray, " head"], k: int) -> TopOverlap:
    """Overlap of the k largest of two scores.

    Raises:
        InputError: A ``k`` that is not from 1 to the number of heads, or a score that is NaN.

    Example:
        >>> found = top_overlap(np.array([0.9, 0.8, 0.1, 0.0]), np.array([1.0, 1.0, 1.0, 0.0]), k=2)
        >>> round(found.both, 3), round(found.jaccard, 3), found.tied_first, found.tied_second
        (1.333, 0.5, 0, 1)
    """
    if not 1 <= k <= len(first) or np.isnan(first).any() or np.isnan(second).any():
        raise InputError(f"Expected k from 1 to {len(first)} and no NaN among the scores, got k={k}.")
    (one, tied_one), (other, tied_other) = _members(first, k), _members(second, k)
    both = float((one * other).sum())
    return TopOverlap(k, both, both / (2 * k - both), k * k / len(first), tied_one, tied_other)


def _members(scores: Float[np.ndarray, " head"], k: int) -> tuple[Float[np.ndarray, " head"], int]:
    """Each head's share in the top k, and how many heads too many tie for the last places."""
    edge = np.sort(scores)[-k]
    above, ties = scores > edge, scores == edge
    room = k - int(above.sum())
    return above + ties * (room / int(ties.sum())), int(ties.sum()) - room


def auc(scores: Float[np.ndarray, " head"], labels: Bool[np.ndarray, " head"]) -> float:
    """Area under the curve: probability that a labelled head scores above another one, ties counted half.

    NaN when all heads or none are labelled.

    >>> auc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    0.875
    """
    inside, outside = scores[labels], np.sort(scores[~labels])
    if not len(inside) or not len(outside):
        return math.nan
    below = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    return float(below.sum() / (2 * len(inside) * len(outside)))
