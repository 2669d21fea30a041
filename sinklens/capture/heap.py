"""Memory that nobody holds is given back to the system, so that a long pass needs no more than it uses."""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Final

LONG: Final = 1 << 12
"""Tokens of a pass from which on it is worth the time: pages that are given back have to be fetched again."""

ROWS: Final = 1 << 18
"""The same for rows of the tables that were made of it."""


def give_back() -> None:
    """Return free memory to the system, where the C library can: glibc's ``malloc_trim``.

    glibc keeps freed blocks that lie below one in use, of up to 32 MiB each. Hidden states and what a detector keeps of
    every layer alternate there, and the holes of a long pass add up to a third of its peak.

    Cost: a few milliseconds, and a page fault for each page that is used again.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library; no program to look in (Windows)
        return None
    return found
