"""The plan of forward passes: every prompt once, and no token twice that could be shared."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sinklens.interventions import AblateHeads, CalibrateSinks, EditValues, MaskKeys, SlidingWindow
from sinklens.studies.needles.instance import NeedleInstance
from sinklens.studies.needles.passes import may_share, plan_passes
from sinklens.studies.needles.random_needles import random_needle


def instances(seed: int, repeats: int) -> list[NeedleInstance]:
    draw = random.Random(seed)
    lengths = sorted({draw.randint(8, 40) for _ in range(draw.randint(1, 3))})
    depths = sorted({draw.choice([0, 0.1, 0.3, 0.5, 0.8, 1.0]) for _ in range(draw.randint(1, 4))})
    cells = [(length, depth) for length in lengths for depth in depths]
    found = []
    for repeat in range(repeats):
        found += random_needle(range(200), [500], cells, repeat=repeat, size=3, seed=seed, bos="")
    draw.shuffle(found)
    return found


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 300), st.booleans())
def test_every_prompt_runs_once_from_a_beginning_that_is_there(
    seed: int, repeats: int, max_tokens: int, share: bool
) -> None:
    some = instances(seed, repeats)
    chains = plan_passes(some, share=share, max_tokens=max_tokens)
    seen = Counter(number for chain in chains for step in chain for number in step.members)
    assert seen == Counter(range(len(some)))
    for chain in chains:
        held: dict[int, tuple[int, ...]] = {}
        for step in chain:
            for place, number in enumerate(step.members):
                fed = some[number].fed
                assert len(fed) == step.total and step.rows == len(some[number].answer)
                assert held.get(place, ())[: step.keep] == fed[: step.keep]
                assert step.keep <= step.total - step.rows
                held[place] = fed
            assert len(step.members) == 1 or len(step.members) * step.total <= max(max_tokens, step.total)
        assert share or (len(chain) == 1 and chain[0].keep == 0)


@given(st.integers(0, 10**6))
def test_sharing_runs_each_beginning_once(seed: int) -> None:
    some = instances(seed, 1)
    run = sum(step.total - step.keep for chain in plan_passes(some, max_tokens=1) for step in chain)
    beginnings = {each.fed[:length] for each in some for length in range(1, len(each.fed) + 1)}
    twice = len(some) - len({each.fed for each in some})  # equal prompts still run their answer rows
    assert run == len(beginnings) + twice * 3


def test_repeats_side_by_side_keep_what_all_of_them_have_in_common() -> None:
    def prompt(repeat: int, start: int, *ids: int) -> NeedleInstance:
        given = dict(kind="natural", length=6, depth=0.0, depth_got=0.0, bos="", answer=(7,))
        span, needle = (start, start + 1), (start - 1, start + 1)
        return NeedleInstance(ids=ids, span=span, needle=needle, repeat=repeat, **given)  # type: ignore[arg-type]

    some = [
        prompt(0, 2, 1, 5, 7, 2, 3, 9), prompt(0, 4, 1, 2, 3, 5, 7, 9),
        prompt(1, 2, 1, 5, 7, 2, 3, 9), prompt(1, 4, 1, 5, 3, 5, 7, 9),
    ]  # fmt: skip
    [chain] = plan_passes(some, max_tokens=100)
    assert [(step.members, step.keep) for step in chain] == [((0, 2), 0), ((1, 3), 1)]


def test_only_changes_that_do_not_reach_back_share() -> None:
    uniform = AblateHeads(["L0H0"], "uniform")
    assert may_share(None) and may_share(uniform) and may_share(SlidingWindow(4) + MaskKeys(keys=(0,)))
    calibrate = CalibrateSinks.__new__(CalibrateSinks)
    values = EditValues.__new__(EditValues)
    assert not may_share(calibrate) and not may_share(values)


def test_a_composition_shares_only_if_all_its_parts_do() -> None:
    from sinklens.interventions.base import Composition

    assert not may_share(Composition((AblateHeads("all"), EditValues.__new__(EditValues))))
