"""Needles of random tokens: a key with its values among other tokens, and the key once more at the end."""

import math
import random
from collections.abc import Sequence

from sinklens.errors import InputError
from sinklens.studies.needles.instance import NeedleInstance


def random_needle(
    ordinary: Sequence[int],
    prefix: Sequence[int],
    cells: Sequence[tuple[int, float]],
    *,
    repeat: int,
    size: int,
    seed: int,
    bos: str,
) -> list[NeedleInstance]:
    """One repeat at every length and depth: ``prefix haystack key v_1 .. v_K haystack key``; the answer is the values.

    Key and values occur nowhere else. The haystack's tokens all differ where the vocabulary allows, so that only the
    key tells what comes next. All cells of a repeat take the beginning of one haystack, the same key and values.

    Args:
        ordinary: Ids to draw from.
        prefix: What stands before everything (BOS or nothing).
        cells: Length (tokens of the prompt) and depth of each instance.
        repeat: Number of the repeat; with ``seed`` it determines all draws.
        size: Values, K.
        seed: Of the draws.
        bos: Sentence about the prefix.

    Raises:
        InputError: A vocabulary of fewer than K + 2 ordinary ids, or a length that has no room for needle and question.

    Example:
        >>> [found] = random_needle(range(50), [99], [(12, 0.5)], repeat=0, size=3, seed=0, bos="")
        >>> found.ids[found.span[0] - 1] == found.ids[-1], found.ids[0], len(found.ids), found.span
        (True, 99, 12, (5, 8))
    """
    if len(ordinary) < size + 2:
        raise InputError(
            f"A needle of {size} values needs {size + 2} ordinary tokens and this vocabulary has {len(ordinary)}; use "
            "a smaller size."
        )
    overhead = len(prefix) + size + 2
    shortest = min(length for length, _ in cells)
    if shortest < overhead:
        raise InputError(
            f"A prompt of {shortest} tokens has no room for a needle of {size + 1} tokens, the question and the BOS; "
            f"use lengths from {overhead} on."
        )
    draw = random.Random(f"{seed}/{repeat}")
    key, *values = draw.sample(list(ordinary), size + 1)
    rest = sorted(set(ordinary) - {key, *values})
    most = max(length for length, _ in cells) - overhead
    haystack = draw.sample(rest, most) if most <= len(rest) else draw.choices(rest, k=most)
    found = []
    for length, depth in cells:
        filler = length - overhead
        before = round(depth * filler)
        start = len(prefix) + before
        ids = [*prefix, *haystack[:before], key, *values, *haystack[before:filler], key]
        found.append(
            NeedleInstance(
                kind="random",
                length=length,
                depth=depth,
                repeat=repeat,
                ids=tuple(ids),
                answer=tuple(values),
                span=(start + 1, start + 1 + size),
                needle=(start, start + 1 + size),
                depth_got=before / filler if filler else math.nan,
                bos=bos,
            )
        )
    return found
