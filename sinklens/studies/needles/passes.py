"""Which prompts run together, and which beginnings they share."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sinklens.interventions import AblateHeads, Intervention, MaskKeys, ScaleKeys, SlidingWindow
from sinklens.interventions.base import Composition
from sinklens.studies.needles.instance import NeedleInstance

TOKENS_PER_PASS = {"cpu": 4096, "cuda": 1 << 16}
"""Tokens of one forward pass, all sequences together, unless the caller says otherwise."""

PREFIX_SAFE = (AblateHeads, MaskKeys, ScaleKeys, SlidingWindow)
"""Interventions under which a token's keys and values depend on the tokens before it alone."""


@dataclass(frozen=True)
class Step:
    """One forward pass: some instances, side by side.

    Attributes:
        members: Numbers of the instances.
        keep: Tokens at the beginning that stand in the cache from the step before; the rest is run.
        total: Tokens of each sequence.
        rows: Answer rows, the last ones.
    """

    members: tuple[int, ...]
    keep: int
    total: int
    rows: int


def plan_passes(instances: Sequence[NeedleInstance], *, share: bool = True, max_tokens: int) -> list[list[Step]]:
    """Forward passes that cover all instances, in chains: the steps of a chain share one KV cache.

    With ``share`` a chain takes one repeat through all its lengths and depths, the shallowest needle first: what stands
    before a needle is the same for all deeper ones and for all lengths, so each step keeps it and runs the rest. Every
    token whose beginning is new runs exactly once. Repeats whose prompts have the same lengths run side by side.
    Without it, instances of one length run side by side from their beginning. Nothing is ever padded.

    Args:
        instances: The prompts.
        share: Whether steps keep what they have in common with the step before.
        max_tokens: Most tokens of a pass (a single sequence may be longer).

    Example:
        >>> prompt = dict(kind="random", length=0, depth=0, answer=(7,), depth_got=0, bos="")
        >>> some = [
        ...     NeedleInstance(ids=(1, 2, 9, 7, 9), span=(3, 4), needle=(2, 4), repeat=0, **prompt),
        ...     NeedleInstance(ids=(1, 9, 7, 2, 9), span=(2, 3), needle=(1, 3), repeat=0, **prompt),
        ... ]
        >>> [(step.members, step.keep) for chain in plan_passes(some, max_tokens=100) for step in chain]
        [((1,), 0), ((0,), 1)]
    """
    if not share:
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, each in enumerate(instances):
            alike[len(each.fed), len(each.answer)].append(number)
        chains = []
        for (total, rows), numbers in sorted(alike.items()):
            step = max(1, max_tokens // total)
            for start in range(0, len(numbers), step):
                chains.append([Step(tuple(numbers[start : start + step]), 0, total, rows)])
        return chains
    by_repeat: dict[int, list[int]] = defaultdict(list)
    for number, each in enumerate(instances):
        by_repeat[each.repeat].append(number)
    alike_repeats: dict[tuple[tuple[int, int], ...], list[list[int]]] = defaultdict(list)
    for numbers in by_repeat.values():
        numbers.sort(key=lambda number: (instances[number].needle[0], len(instances[number].fed), number))
        lengths = tuple((len(instances[number].fed), len(instances[number].answer)) for number in numbers)
        alike_repeats[lengths].append(numbers)
    chains = []
    for lengths, repeats in alike_repeats.items():
        copies = max(1, max_tokens // max(total for total, _ in lengths))
        for start in range(0, len(repeats), copies):
            together = repeats[start : start + copies]
            chains.append(_chain(instances, list(zip(*together, strict=True))))
    return chains


def _chain(instances: Sequence[NeedleInstance], columns: Sequence[tuple[int, ...]]) -> list[Step]:
    steps: list[Step] = []
    fed = {number: np.array(instances[number].fed) for column in columns for number in column}
    for place, members in enumerate(columns):
        total, rows = len(fed[members[0]]), len(instances[members[0]].answer)
        keep = 0
        if place:
            before = columns[place - 1]
            keep = min(_in_common(fed[a], fed[b]) for a, b in zip(before, members, strict=True))
        steps.append(Step(tuple(members), min(keep, total - rows), total, rows))
    return steps


def _in_common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def may_share(intervention: Intervention | None) -> bool:
    """Whether a beginning that prompts have in common may be run once for all under this intervention.

    Only where it is known that later tokens do not reach back: interventions that look at what keys receive from the
    whole text, or that change values and activations, run every prompt from its beginning.
    """
    if isinstance(intervention, Composition):
        return all(may_share(part) for part in intervention.parts)
    return intervention is None or type(intervention) in PREFIX_SAFE
