"""Chance levels against enumeration of every possible draw."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinklens.errors import InputError
from sinklens.studies.head_roles.chance import auc, overlap, top_overlap


def mask(chosen: tuple[int, ...], n: int) -> np.ndarray:
    found = np.zeros(n, dtype=bool)
    found[list(chosen)] = True
    return found


@given(st.data())
def test_overlap_is_that_of_every_random_set(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 7))
    first = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    second = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    layer = np.array(sorted(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))))
    found = overlap(first, second, layer)
    assert (found.n, found.first, found.second) == (n, first.sum(), second.sum())
    assert found.both == sum(a and b for a, b in zip(first, second, strict=True))
    if not first.any() or not second.any():
        assert all(math.isnan(x) for x in (found.jaccard, found.expected, found.expected_jaccard, found.p))
        assert math.isnan(found.expected_in_layers) and math.isnan(found.p_in_layers)
        return
    draws = [mask(chosen, n) for chosen in itertools.combinations(range(n), int(second.sum()))]
    shared = np.array([(first & drawn).sum() for drawn in draws])
    either = np.array([(first | drawn).sum() for drawn in draws])
    assert found.expected == pytest.approx(shared.mean())
    assert found.expected_jaccard == pytest.approx((shared / either).mean())
    assert found.p == pytest.approx((shared >= found.both).mean())
    assert found.jaccard == found.both / (first | second).sum()
    within = [drawn for drawn in draws if all(drawn[layer == x].sum() == second[layer == x].sum() for x in range(3))]
    shared = np.array([(first & drawn).sum() for drawn in within])
    assert found.expected_in_layers == pytest.approx(shared.mean())
    assert found.p_in_layers == pytest.approx((shared >= found.both).mean())


def test_two_criteria_that_pick_the_same_layer_do_not_agree_beyond_it() -> None:
    layer = np.repeat([0, 1], 10)
    first, second = mask(tuple(range(0, 8)), 20), mask(tuple(range(2, 10)), 20)
    found = overlap(first, second, layer)
    assert found.both == 6 and found.p < 0.02
    assert found.expected_in_layers == pytest.approx(6.4) and found.p_in_layers == pytest.approx(1)


@given(st.data())
def test_top_overlap_is_the_mean_over_ways_to_break_ties(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    one, other = (np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), float) for _ in range(2))
    k = data.draw(st.integers(1, n))
    found = top_overlap(one, other, k)

    def tops(scores: np.ndarray) -> list[set[int]]:
        sets = [set(c) for c in itertools.combinations(range(n), k)]
        return [s for s in sets if all(scores[i] >= scores[j] for i in s for j in set(range(n)) - s)]

    both = [len(a & b) for a in tops(one) for b in tops(other)]
    assert found.both == pytest.approx(np.mean(both))
    assert found.jaccard == pytest.approx(found.both / (2 * k - found.both))
    assert (found.tied_first > 0) == (len(tops(one)) > 1) and (found.tied_second > 0) == (len(tops(other)) > 1)
    assert found.expected == pytest.approx(k * k / n)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12))
def test_auc_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([x for x, _ in rows], float), np.array([y for _, y in rows])
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels] for b in scores[~labels]]
    if pairs:
        assert auc(scores, labels) == pytest.approx(np.mean(pairs))
    else:
        assert math.isnan(auc(scores, labels))


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="one entry for each head"):
        overlap(np.ones(2, bool), np.ones(3, bool), np.zeros(3, int))
    for k in (0, 3):
        with pytest.raises(InputError, match="k from 1 to 2"):
            top_overlap(np.zeros(2), np.zeros(2), k)
    with pytest.raises(InputError, match="no NaN"):
        top_overlap(np.array([1.0, math.nan]), np.zeros(2), 1)
