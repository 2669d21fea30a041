"""What a sweep changes: every head, named groups, the top k of a ranking, and random sets to compare with."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sinklens.errors import InputError
from sinklens.evidence.controls import random_head_sets
from sinklens.interventions.heads import Head, head_name, parse_head, parse_heads

OWN = "own"
"""The ranking that a sweep makes itself, from its own single heads."""

Kind = Literal["head", "group", "top", "random"]


@dataclass(frozen=True)
class Variant:
    """One set of heads that is changed together.

    Attributes:
        name: ``"L0H3"``, a group's name, ``"top-4"``, or ``"random-4/3"`` (the draw 3 of 4 heads).
        kind: ``"head"``, ``"group"``, ``"top"`` or ``"random"``.
        heads: The heads, in order.
        draw: Number of the random draw, ``None`` unless random.
        control_of: Which variant a random one is the control of.
    """

    name: str
    kind: Kind
    heads: tuple[Head, ...]
    draw: int | None = None
    control_of: str | None = None

    @property
    def head_names(self) -> str:
        """``"L0H3,L1H2"``."""
        return ",".join(map(head_name, self.heads))


def head_variants(heads: Iterable[Head]) -> list[Variant]:
    """Every head by itself."""
    return [Variant(head_name(head), "head", (head,)) for head in heads]


def group_variants(groups: Mapping[str, object]) -> list[Variant]:
    """Named sets, each changed as a whole.

    Raises:
        InputError: A name that another variant has or could have, or heads that cannot be read.
    """
    variants = []
    for name, heads in groups.items():
        if not name.strip() or re.fullmatch(r"[Ll]\d+[Hh]\d+|(top|random)-.*", name):
            raise InputError(f"A group needs a name of its own, not one like L0H1, top-4 or random-4/1; got {name!r}.")
        parsed = parse_heads(heads)
        if isinstance(parsed, str):
            raise InputError(f'The group {name!r} must list its heads, such as "L5H1,L3H2"; got "all".')
        variants.append(Variant(name, "group", parsed))
    return variants


def top_variants(ranking: Sequence[object], sizes: Sequence[int]) -> list[Variant]:
    """The first k heads of a ranking together, for every k.

    Raises:
        InputError: A head twice in the ranking, or a k that it does not have.

    >>> [(variant.name, variant.head_names) for variant in top_variants(["L1H0", "L0H2"], [1, 2])]
    [('top-1', 'L1H0'), ('top-2', 'L0H2,L1H0')]
    """
    order = [parse_head(head) for head in ranking]
    if len(set(order)) < len(order):
        twice = next(head for head in order if order.count(head) > 1)
        raise InputError(f"The ranking holds {head_name(twice)} more than once.")
    for size in sizes:
        if not 1 <= size <= len(order):
            raise InputError(f"top must be from 1 to {len(order)}, the number of ranked heads; got {size}.")
    return [Variant(f"top-{size}", "top", tuple(sorted(order[:size]))) for size in sorted(set(sizes))]


def default_sizes(n_ranked: int, n_heads: int) -> list[int]:
    """1, 2, 4, ... up to half of all heads, so that controls of the same size are left.

    >>> default_sizes(36, 36), default_sizes(3, 36), default_sizes(1, 1)
    ([1, 2, 4, 8, 16], [1, 2], [1])
    """
    most = max(1, min(n_ranked, n_heads // 2))
    return [1 << power for power in range(int(math.log2(most)) + 1)]


def control_variants(
    tested: Sequence[Variant], pool: Sequence[Head], draws: int, seed: int
) -> tuple[list[Variant], list[str]]:
    """Random sets of the same size, layers and number for each tested variant, none of its heads among them.

    Returns:
        The controls, and notes about those that could not be drawn as wished.
    """
    variants, notes = [], []
    for variant in tested:
        drawn = random_head_sets(pool, variant.heads, draws=draws, seed=seed)
        stem = f"{len(variant.heads)}" if variant.kind == "top" else variant.name
        variants += [
            Variant(f"random-{stem}/{number}", "random", heads, number, variant.name)
            for number, heads in enumerate(drawn.sets)
        ]
        notes += [f"{variant.name}: {note}" for note in drawn.notes]
    return variants, notes


def rank(scores: Mapping[Head, float]) -> list[Head]:
    """Heads by score, the largest first; ties in order of layer and head, heads without a score left out.

    >>> rank({(0, 1): 0.5, (0, 0): 0.5, (1, 0): 2.0, (1, 1): float("nan")})
    [(1, 0), (0, 0), (0, 1)]
    """
    known = {head: score for head, score in scores.items() if not math.isnan(score)}
    return sorted(known, key=lambda head: (-known[head], head))
