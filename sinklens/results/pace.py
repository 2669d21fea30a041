"""How long work takes, from how long the first pieces of it took."""

import time
from collections.abc import Callable


class Pace:
    """The time that work of a known size still takes.

    The first piece is left out of the pace as soon as there are others: it pays for everything that happens once.

    Args:
        work: How much there is in all.
        clock: Seconds, from any start.
    """

    ENOUGH, LONG = 2.0, 6.0
    """Seconds after which two pieces tell the pace, and after which a single one does."""

    def __init__(self, work: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.work, self.done, self._clock = work, 0.0, clock
        self._began = self._last = clock()
        self._first: tuple[float, float] | None = None
        self._measured = 0.0

    def skip(self, work: float) -> None:
        """So much was done before."""
        self.done += work

    def advance(self, work: float) -> None:
        """So much more is done now."""
        self.done += work
        self._measured += work
        self._last = self._clock()
        if self._first is None and work > 0:
            self._first = self._last, self._measured

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    @property
    def left(self) -> float:
        """Seconds until everything is done; infinite while nothing is."""
        if self._first is None or self._measured <= 0:
            return float("inf")
        began, before = self._first
        seconds, work = self._last - began, self._measured - before
        if work <= 0 or seconds <= 0:
            seconds, work = self._last - self._began, self._measured
        return seconds / work * max(0.0, self.work - self.done)

    @property
    def total(self) -> float:
        """Seconds from the beginning to the end."""
        return self.spent + self.left

    @property
    def known(self) -> bool:
        """Whether enough was measured to say how long it takes."""
        if self._first is None:
            return False
        more = self._measured > self._first[1]
        return self.spent >= self.LONG or (more and self.spent >= self.ENOUGH)


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(8.4), duration(400), duration(9000)
    ('8 s', '7 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
