"""Intervals against SciPy's, their coverage, and what happens where there is none."""

import math

import numpy as np
import pytest
import scipy.stats

from sinklens.errors import InputError
from sinklens.evidence.bootstrap import paired_interval, statistic_interval


@pytest.mark.parametrize("draw", ["normal", "exponential", "sparse", "heavy"])
def test_equal_to_scipy(draw: str) -> None:
    rng = np.random.default_rng(3)
    data = {
        "normal": rng.normal(0.3, 1, 40),
        "exponential": rng.exponential(size=30),
        "heavy": rng.exponential(size=12) ** 3,
        "sparse": (rng.random(50) < 0.1).astype(float),
    }[draw]
    ours = paired_interval(data, resamples=40_000)
    theirs = scipy.stats.bootstrap((data,), np.mean, n_resamples=40_000, method="BCa", rng=1).confidence_interval
    assert ours.method == "BCa" and ours.n == len(data) and ours.value == pytest.approx(data.mean())
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_it_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = [1.0 in paired_interval(rng.exponential(size=40), resamples=800) for _ in range(300)]
    assert 0.90 <= np.mean(hits) <= 0.985


def test_wider_for_more_confidence_and_the_same_for_the_same_seed() -> None:
    data = np.random.default_rng(1).normal(size=25)
    usual, wide = paired_interval(data), paired_interval(data, confidence=0.99)
    assert wide.low < usual.low < usual.high < wide.high
    assert usual == paired_interval(data) != paired_interval(data, seed=1)


def test_scale_does_not_matter() -> None:
    data = np.random.default_rng(2).exponential(size=12).round() ** 3  # many ties, and skewed
    usual, tiny = paired_interval(data), paired_interval(1e-9 * data)
    assert (1e9 * tiny.low, 1e9 * tiny.high) == pytest.approx((usual.low, usual.high))


def test_degenerate_data_fall_back_and_say_so() -> None:
    same = paired_interval([0.25] * 8)
    assert (same.low, same.high, same.method, same.note) == (0.25, 0.25, "percentile", "all differences are equal")
    few = paired_interval([1.0, 2.0, math.nan, 3.0, 4.0])
    assert few.value == 2.5 and math.isnan(few.low) and few.n == 4 and "needs 5" in few.note
    none = paired_interval([math.nan])
    assert none.n == 0 and math.isnan(none.value) and none.note == "no pairs"
    infinite = paired_interval([math.inf, 1, 2, 3, 4, 5])
    assert infinite.value == math.inf and math.isnan(infinite.high) and infinite.method == "none"
    with pytest.raises(InputError, match="confidence"):
        paired_interval([1.0] * 9, confidence=95)


def test_pairs_that_are_nan_are_left_out() -> None:
    data = np.random.default_rng(4).normal(size=12)
    holes = np.insert(data, [0, 5, 12], math.nan)
    assert paired_interval(holes) == paired_interval(data)


def test_ratio_against_scipy_and_where_undefined() -> None:
    rng = np.random.default_rng(5)
    bottom = rng.integers(0, 2, 60).astype(float)
    top = bottom * rng.integers(0, 2, 60)
    found = statistic_interval(np.stack([top, bottom]), lambda means: means[0] / means[1], resamples=40_000)
    theirs = scipy.stats.bootstrap(
        (top, bottom), lambda t, b, axis: t.sum(axis) / b.sum(axis), paired=True, n_resamples=40_000, rng=0
    ).confidence_interval
    assert found.low == pytest.approx(theirs.low, abs=0.01) and found.high == pytest.approx(theirs.high, abs=0.01)

    def ratio(means: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return means[0] / means[1]

    rare = np.zeros((2, 6))
    rare[:, 0] = 1, 1
    found = statistic_interval(rare, ratio)
    assert found.value == 1 and "undefined in" in found.note and (found.low, found.high) == (1, 1)
    nothing = statistic_interval(np.zeros((2, 6)), ratio)
    assert math.isnan(nothing.value) and math.isnan(nothing.low)
