"""Words for numbers: how many of something, a list with an "and", numbers as runs."""

import math
from collections.abc import Iterable


def several(count: int, what: str) -> str:
    """So many of something, in the singular where it is one.

    Args:
        count: How many.
        what: One of them; its last word takes the plural.

    >>> several(1, "head"), several(1200, "KV head"), several(0, "query"), several(2, "entry")
    ('1 head', '1,200 KV heads', '0 queries', '2 entries')
    """
    if count == 1:
        return f"1 {what}"
    consonant_y = what.endswith("y") and what[-2:-1] not in "aeiou"
    return f"{count:,} {what[:-1]}ies" if consonant_y else f"{count:,} {what}s"


def changed(value: float, low: float = math.nan, high: float = math.nan, digits: int = 2, unit: str = "") -> str:
    """A change with its sign, and with its interval where there is one; never -0.

    >>> changed(0.312, 0.25, 0.38), changed(-0.0001, unit=" nats")
    ('+0.31 [+0.25, +0.38]', '+0.00 nats')
    """
    told = f"{value:+z.{digits}f}{unit}"
    return told if math.isnan(low) else f"{told} [{low:+z.{digits}f}, {high:+z.{digits}f}]"


def are(count: int) -> str:
    """``is`` of one, ``are`` of more or none.

    >>> are(1), are(2), are(0)
    ('is', 'are', 'are')
    """
    return "is" if count == 1 else "are"


def from_to(low: int, high: int, what: str) -> str:
    """A span of numbers of something; one number where both ends are the same.

    >>> from_to(24, 64, "token"), from_to(64, 64, "token"), from_to(1, 1, "token")
    ('24 to 64 tokens', '64 tokens', '1 token')
    """
    return several(high, what) if low == high else f"{low:,} to {several(high, what)}"


def listed(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def runs(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers in order, those that follow each other together.

    >>> runs([5, 0, 1])
    [[0, 1], [5]]
    """
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return found


def run_words(numbers: Iterable[int], shortest: int = 3, between: str = "-") -> list[str]:
    """Numbers in order, those that follow each other as ``3-7``.

    Args:
        numbers: In any order.
        shortest: How many make a run.
        between: First and last of a run.

    >>> run_words([12, 13, 14, 0, 1, 7]), run_words([0, 1, 7], shortest=2, between=" to ")
    (['0', '1', '7', '12-14'], ['0 to 1', '7'])
    """
    return [
        part
        for run in runs(numbers)
        for part in ([f"{run[0]}{between}{run[-1]}"] if len(run) >= shortest else [str(number) for number in run])
    ]
