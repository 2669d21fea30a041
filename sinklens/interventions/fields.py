"""Checks of fields that several interventions share: numbers within bounds, and spans of tokens."""

import math
from collections.abc import Iterable
from typing import Any

from sinklens.errors import InputError
from sinklens.interventions.heads import as_index


def parse_number(value: Any, name: str, low: float, high: float = math.inf, *, above: bool = False) -> float:
    """``value`` as a finite number from ``low`` to ``high``.

    Args:
        value: What the caller gave.
        name: The field, for the message.
        low: Smallest number allowed.
        high: Largest number allowed.
        above: Whether ``low`` itself is too small.

    Raises:
        InputError: Something else, a truth value included.

    >>> parse_number(1, "beta", 0, 1)
    1.0
    """
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (low < number if above else low <= number) or not number <= high or number == math.inf:
        bounds = f"above {low:g}" if above else f"from {low:g}"
        upper = "" if high == math.inf else f" to {high:g}"
        raise InputError(f"{name} must be a finite number {bounds}{upper}, got {value!r}.")
    return number


def parse_span(span: object, name: str) -> tuple[int, ...]:
    """Token positions in order and each once: from positions, ranges, or several of both.

    Raises:
        InputError: No position at all, or one that is not an integer from 0.

    >>> parse_span([range(5, 8), 2], "target"), parse_span(range(2), "target"), parse_span(7, "target")
    ((2, 5, 6, 7), (0, 1), (7,))
    """
    found: set[int] = set()
    for part in span if isinstance(span, Iterable) and not isinstance(span, str) else [span]:
        found |= {as_index(position) for position in part} if isinstance(part, range) else {as_index(part)}
    if not found or min(found) < 0:
        raise InputError(
            f"{name} must be token positions counted from 0 or ranges of them, such as range(5, 30) or "
            f"[range(5, 9), 12]; got {span!r}."
        )
    return tuple(sorted(found))
