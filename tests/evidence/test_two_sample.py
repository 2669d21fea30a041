"""Intervals of a difference between unpaired groups: against SciPy's, their coverage, and where there is none."""

import math

import numpy as np
import pytest
import scipy.stats

from sinklens.errors import InputError
from sinklens.evidence.two_sample import difference_intervals


@pytest.mark.parametrize("sizes", [(40, 25), (12, 60)])
def test_equal_to_scipy(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    n, m = sizes
    first = np.stack([rng.normal(0.3, 1, n), rng.exponential(size=n) ** 3, rng.normal(size=n)], axis=1)
    second = np.stack([rng.normal(0, 3, m), rng.exponential(size=m), rng.exponential(size=m) ** 3], axis=1)
    ours = difference_intervals(first, second, resamples=40_000)
    for column in range(3):
        pair = first[:, column], second[:, column]
        theirs = scipy.stats.bootstrap(
            pair, lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=40_000, method="BCa", rng=1
        ).confidence_interval
        assert ours.value[column] == pytest.approx(pair[0].mean() - pair[1].mean())
        width = theirs.high - theirs.low
        assert ours.low[column] == pytest.approx(theirs.low, abs=0.03 * width)
        assert ours.high[column] == pytest.approx(theirs.high, abs=0.03 * width)


def test_it_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = difference_intervals(rng.exponential(size=(40, 400)), rng.normal(size=(50, 400)), resamples=1000)
    assert 0.91 <= np.mean((found.low <= 1) & (found.high >= 1)) <= 0.985


def test_groups_change_places_and_columns_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(30, 300)), rng.normal(1, 1, size=(20, 300))
    found, turned = difference_intervals(first, second), difference_intervals(second, first)
    np.testing.assert_allclose(found.value, -turned.value)
    np.testing.assert_allclose(found.low, -turned.high, atol=0.1)
    one = difference_intervals(first[:, 270:271], second[:, 270:271])  # beyond one chunk of columns
    assert one.low[0] == pytest.approx(found.low[270]) and one.high[0] == pytest.approx(found.high[270])
    assert found.low.tolist() == difference_intervals(first, second).low.tolist()
    assert found.low.tolist() != difference_intervals(first, second, seed=1).low.tolist()


def test_constants_and_few_and_infinite() -> None:
    constant = difference_intervals(np.full((8, 1), 0.75), np.full((6, 1), 0.25))
    assert (constant.value[0], constant.low[0], constant.high[0]) == (0.5, 0.5, 0.5)
    few = difference_intervals(np.arange(4.0)[:, None], np.arange(20.0)[:, None])
    assert few.value[0] == pytest.approx(1.5 - 9.5) and math.isnan(few.low[0]) and math.isnan(few.high[0])
    none = difference_intervals(np.empty((0, 2)), np.ones((6, 2)))
    assert np.isnan(none.value).all()
    data = np.random.default_rng(2).normal(size=(9, 2))
    data[3, 0] = math.nan
    holed = difference_intervals(data, data[4:])
    assert math.isnan(holed.low[0]) and not math.isnan(holed.low[1])


def test_shapes_are_checked() -> None:
    with pytest.raises(InputError, match="equal columns"):
        difference_intervals(np.ones((5, 2)), np.ones((5, 3)))
    with pytest.raises(InputError, match="confidence"):
        difference_intervals(np.ones((5, 2)), np.ones((5, 2)), confidence=95)
