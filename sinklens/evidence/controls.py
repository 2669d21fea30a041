"""Random heads as a control: as many as were tested, of the same layers, and none of the tested ones."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sinklens.errors import InputError
from sinklens.interventions.heads import Head, head_name, parse_head
from sinklens.wording import are, several

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DRAWS = 10
"""Fewer random sets than this say little: with n of them, no p below 1 / (n + 1) can come out."""


def all_heads(model: "TransformerBridge") -> tuple[Head, ...]:
    """Every query head of every layer with softmax attention, as ``(layer, head)``."""
    from sinklens.models.architecture import attention_layers

    return tuple((layer, head) for layer in sorted(attention_layers(model)) for head in range(int(model.cfg.n_heads)))


@dataclass(frozen=True)
class RandomHeadSets:
    """Random sets of heads with the budget of a tested set.

    Attributes:
        sets: Each as many heads as were tested, in order; no two sets are equal, none holds a tested head.
        moved: How many heads of each set come from other layers than the tested ones, because a tested layer has too
            few untested heads; 0 when every set has exactly the tested number of heads in each layer.
        possible: How many different sets there are that keep to the tested layers as far as they can.
        widened: How many of ``sets`` take heads of any layer instead, because ``possible`` are too few.
        notes: What a reader of the comparison should know; empty when nothing is amiss.
    """

    sets: tuple[tuple[Head, ...], ...]
    moved: int
    possible: int
    widened: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sets)


def random_head_sets(
    heads: Iterable[object],
    tested: Iterable[object],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    exclude: Iterable[object] = (),
) -> RandomHeadSets:
    """Draw sets of untested heads, as many heads of each layer as the tested set has there.

    Where a layer has too few untested heads, all of them are taken and the rest of the budget is drawn from the
    untested heads of any other layer. When there are fewer such sets than draws, the missing ones take untested heads
    of any layer. Sets are drawn one after another, each at random and repeated until it differs from those before; so
    more draws with the same seed begin with the same sets. When the untested heads together are fewer than the tested
    ones there is no control of equal budget, and no set is returned.

    Args:
        heads: All heads to choose from, such as :func:`all_heads`.
        tested: The heads under test.
        draws: How many sets; fewer are returned when fewer differ.
        seed: Which ones.
        exclude: Heads that must not serve as controls, for example other heads believed to matter.

    Raises:
        InputError: Nothing tested, a tested head that is not among ``heads``, or ``draws`` below 1.

    >>> pool = [(layer, head) for layer in range(2) for head in range(4)]
    >>> drawn = random_head_sets(pool, ["L0H1", "L1H2"], draws=3)
    >>> [[layer for layer, head in heads] for heads in drawn.sets], drawn.possible, drawn.notes
    ([[0, 1], [0, 1], [0, 1]], 9, ())
    """
    pool = {parse_head(head) for head in heads}
    chosen = {parse_head(head) for head in tested}
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}.")
    if not chosen:
        raise InputError("No tested heads were given; name at least one.")
    if not chosen <= pool:
        raise InputError(f"{head_name(min(chosen - pool))} was tested but is not among the heads to choose from.")
    free = _by_layer(pool - chosen - {parse_head(head) for head in exclude})
    wanted = {layer: len(there) for layer, there in _by_layer(chosen).items()}
    n_free = sum(map(len, free.values()))
    if n_free < len(chosen):
        note = (
            f"No control of equal budget: {several(len(chosen), 'head')} {'was' if len(chosen) == 1 else 'were'} "
            f"tested and {n_free} {are(n_free)} left to draw from."
        )
        return RandomHeadSets((), 0, 0, 0, (note,))

    taken = {layer: min(count, len(free.get(layer, ()))) for layer, count in wanted.items()}
    moved = len(chosen) - sum(taken.values())
    possible = _count_sets(free, taken, len(chosen))
    notes = []
    if moved:
        short = ", ".join(f"L{layer}" for layer in wanted if taken[layer] < wanted[layer])
        notes.append(
            f"{moved} of {several(len(chosen), 'control head')} {'comes' if moved == 1 else 'come'} from other "
            f"layers: too few untested heads in {short}."
        )
    rng = np.random.default_rng(seed)
    sets: dict[tuple[Head, ...], None] = {}
    while len(sets) < min(draws, possible):
        sets[_draw(rng, free, taken, moved)] = None
    everywhere = math.comb(n_free, len(chosen))
    while len(sets) < min(draws, everywhere):
        sets[_draw(rng, free, {}, len(chosen))] = None
    widened = len(sets) - min(draws, possible)
    if widened:
        notes.append(
            f"{_sets(possible)} of the tested layers; the other {widened} {'takes' if widened == 1 else 'take'} heads "
            f"of any layer."
        )
    if len(sets) < draws:
        notes.append(f"{_sets(everywhere)} of untested heads; {draws} were asked for.")
    return RandomHeadSets(tuple(sets), moved, possible, widened, tuple(notes))


def _sets(count: int) -> str:
    return "There is only 1 set" if count == 1 else f"There are only {count} different sets"


def _by_layer(heads: Iterable[Head]) -> dict[int, list[Head]]:
    found = defaultdict(list)
    for head in sorted(heads):
        found[head[0]].append(head)
    return dict(found)


def _draw(
    rng: np.random.Generator, free: Mapping[int, Sequence[Head]], taken: Mapping[int, int], moved: int
) -> tuple[Head, ...]:
    drawn: set[Head] = set()
    for layer in sorted(taken):
        if taken[layer]:
            drawn.update(free[layer][i] for i in rng.choice(len(free[layer]), taken[layer], replace=False))
    if moved:
        rest = sorted(head for there in free.values() for head in there if head not in drawn)
        drawn.update(rest[i] for i in rng.choice(len(rest), moved, replace=False))
    return tuple(sorted(drawn))


def _count_sets(free: Mapping[int, Sequence[Head]], taken: Mapping[int, int], budget: int) -> int:
    """Sets of ``budget`` free heads with at least ``taken[layer]`` of each layer."""
    ways = [1] + [0] * budget  # ways[k]: how many sets of k heads of the layers so far
    for layer, there in free.items():
        at_least = taken.get(layer, 0)
        ways = [
            sum(ways[k - j] * math.comb(len(there), j) for j in range(at_least, min(k, len(there)) + 1))
            for k in range(budget + 1)
        ]
    return ways[budget]


@dataclass(frozen=True)
class ControlComparison:
    """Where a tested value stands among those of its controls.

    Attributes:
        mean: Mean of the controls.
        sd: Their standard deviation with n - 1; NaN for fewer than two.
        n: How many there are.
        rank: Rank of the tested value among itself and the controls, 1 = the largest; the mean rank for ties.
        p: Share of values at least as large as the tested one, itself counted: ``(1 + #{controls >= tested}) /
            (n + 1)``. One-sided; a permutation p when tested and control sets are exchangeable under the null.
        n_as_large: How many controls are at least as large; NaN where nothing can be compared.
    """

    mean: float
    sd: float
    n: int
    rank: float
    p: float
    n_as_large: float = math.nan


def compare_with_controls(tested: float, controls: Iterable[float], *, tie: float = 0.0) -> ControlComparison:
    """Rank a tested value among its controls; controls that are NaN are left out, and without any all is NaN.

    Values within ``tie`` of the tested one count as equal to it: where nothing has an effect, rounding must not rank.

    >>> compare_with_controls(5.0, [1.0, 2.0, 3.0])
    ControlComparison(mean=2.0, sd=1.0, n=3, rank=1.0, p=0.25, n_as_large=0)
    """
    values = np.array([value for value in controls if not math.isnan(value)], dtype=np.float64)
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    sd = float(values.std(ddof=1)) if n > 1 else math.nan
    if math.isnan(tested) or not n:
        return ControlComparison(mean, sd, n, math.nan, math.nan)
    larger, equal = int((values > tested + tie).sum()), int((np.abs(values - tested) <= tie).sum())
    return ControlComparison(mean, sd, n, 1 + larger + equal / 2, (1 + larger + equal) / (n + 1), larger + equal)
