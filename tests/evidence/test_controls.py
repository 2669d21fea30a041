"""Random head sets against brute force, and ranks against their definitions."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinklens.errors import InputError
from sinklens.evidence.controls import ControlComparison, compare_with_controls, random_head_sets

Head = tuple[int, int]


def grid(layers: int, heads: int) -> list[Head]:
    return list(itertools.product(range(layers), range(heads)))


def brute_force(pool: list[Head], tested: set[Head], exclude: set[Head]) -> set[tuple[Head, ...]]:
    """All untested sets of equal budget that keep to the tested layers as far as those have heads."""
    free = sorted(set(pool) - tested - exclude)
    wanted, there = Counter(layer for layer, _ in tested), Counter(layer for layer, _ in free)
    floor = {layer: min(count, there[layer]) for layer, count in wanted.items()}
    found = set()
    for heads in itertools.combinations(free, len(tested)):
        counts = Counter(layer for layer, _ in heads)
        if all(counts[layer] >= least for layer, least in floor.items()):
            found.add(heads)
    return found


@given(st.data())
def test_sets_are_those_of_brute_force(data: st.DataObject) -> None:
    pool = grid(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4)))
    tested = data.draw(st.sets(st.sampled_from(pool), min_size=1, max_size=5))
    exclude = data.draw(st.sets(st.sampled_from(pool), max_size=3))
    draws, seed = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 1000))
    found = random_head_sets(pool, tested, draws=draws, seed=seed, exclude=exclude)
    every = brute_force(pool, tested, exclude)
    assert found.possible == len(every)
    kept_to, rest = set(found.sets[: len(found) - found.widened]), set(found.sets[len(found) - found.widened :])
    assert kept_to <= every and len(kept_to) == min(draws, len(every))
    anywhere = set(itertools.combinations(sorted(set(pool) - tested - exclude), len(tested)))
    assert rest <= anywhere and not kept_to & rest
    assert len(kept_to | rest) == len(found) == min(draws, len(anywhere))
    wanted = Counter(layer for layer, _ in tested)
    for heads in kept_to:
        kept = sum((Counter(layer for layer, _ in heads) & wanted).values())
        assert found.moved == len(tested) - kept
    assert found == random_head_sets(
        sorted(pool, reverse=True), sorted(tested), draws=draws, seed=seed, exclude=exclude
    )
    assert bool(found.notes) == (len(found) < draws or found.moved > 0 or found.widened > 0)


def test_ten_draws_of_the_same_layers_by_default() -> None:
    found = random_head_sets(grid(6, 12), ["L2H3", "L2H4", (5, 0)])
    assert len(found) == 10 and found.moved == 0 and found.notes == ()
    for heads in found.sets:
        assert [layer for layer, _ in heads] == [2, 2, 5]
        assert not {(2, 3), (2, 4), (5, 0)} & set(heads)


def test_seeds_differ_and_more_draws_go_on() -> None:
    ten, twenty = (random_head_sets(grid(4, 8), ["L1H1", "L3H2"], draws=n, seed=7).sets for n in (10, 20))
    assert twenty[:10] == ten
    assert random_head_sets(grid(4, 8), ["L1H1", "L3H2"], seed=8).sets != ten


def test_draws_are_even() -> None:
    counts: Counter[Head] = Counter()
    for seed in range(400):
        counts.update(random_head_sets(grid(2, 5), ["L0H0"], draws=1, seed=seed).sets[0])
    assert set(counts) == {(0, head) for head in range(1, 5)}
    assert min(counts.values()) > 70  # 100 expected, sd 9


def test_it_says_what_is_amiss() -> None:
    few = random_head_sets(grid(2, 3), ["L0H0", "L0H1"], draws=5)
    assert few.moved == 1 and few.possible == 3
    assert few.notes == (
        "1 of 2 control heads comes from other layers: too few untested heads in L0.",
        "There are only 3 different sets of the tested layers; the other 2 take heads of any layer.",
    )
    assert few.widened == 2 and len(few) == 5
    all_of_them = random_head_sets(grid(1, 3), ["L0H0"], draws=5)
    assert all_of_them.notes == ("There are only 2 different sets of untested heads; 5 were asked for.",)
    none = random_head_sets(grid(1, 2), ["L0H0"], exclude=["L0H1"])
    assert none.sets == () and none.notes == (
        "No control of equal budget: 1 head was tested and 0 are left to draw from.",
    )
    one = random_head_sets(grid(1, 3), ["L0H0", "L0H1"])
    assert one.notes == ("No control of equal budget: 2 heads were tested and 1 is left to draw from.",)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(InputError, match="L5H0 was tested"):
        random_head_sets(grid(2, 2), ["L0H0", "L5H0"])
    with pytest.raises(InputError, match="at least one"):
        random_head_sets(grid(2, 2), [])
    with pytest.raises(InputError, match="draws must be at least 1"):
        random_head_sets(grid(2, 2), ["L0H0"], draws=0)


def test_rank_and_p() -> None:
    assert compare_with_controls(2.0, [1.0, 2.0, 3.0, 2.0]) == ControlComparison(
        mean=2.0, sd=pytest.approx(math.sqrt(2 / 3)), n=4, rank=3.0, p=0.8, n_as_large=3
    )
    assert compare_with_controls(-1, [float(i) for i in range(19)]).p == 1
    top = compare_with_controls(19, [*map(float, range(19)), math.nan])
    assert (top.n, top.rank, top.p) == (19, 1, 0.05)


@pytest.mark.parametrize(("tested", "controls", "n"), [(1.0, [], 0), (math.nan, [1.0, 2.0], 2), (1.0, [math.nan], 0)])
def test_nothing_to_compare_is_not_a_rank(tested: float, controls: list[float], n: int) -> None:
    found = compare_with_controls(tested, controls)
    assert found.n == n and math.isnan(found.rank) and math.isnan(found.p)
    assert math.isnan(found.mean) == (n == 0)
    assert math.isnan(compare_with_controls(1.0, [2.0]).sd)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_ranks_of_all_members_add_up(values: list[int]) -> None:
    ranks = [compare_with_controls(v, [*values[:i], *values[i + 1 :]]).rank for i, v in enumerate(values)]
    if len(values) > 1:
        assert sum(ranks) == sum(range(1, len(values) + 1))
