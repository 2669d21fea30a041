"""What the pretend GPU counts: where the host waits, and what crosses between devices."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = str(Path(__file__).parents[2] / "sinklens")
OWN = tuple(str(Path(__file__).parent / f"{name}.py") for name in ("counts", "tensor", "install"))


@dataclass
class Counts:
    """Events since :func:`counting` began, each as ``kind file:line`` with how often it happened."""

    syncs: Counter[str] = field(default_factory=Counter)
    crossings: Counter[str] = field(default_factory=Counter)

    def syncs_in(self, *files: str) -> int:
        """Waits of the host whose innermost line of sinklens lies in one of these files."""
        return sum(count for place, count in self.syncs.items() if any(name in place for name in files))


_open: list[Counts] = []


@contextmanager
def counting() -> Iterator[Counts]:
    """Count the host's waits and the crossings inside ``with``."""
    found = Counts()
    _open.append(found)
    try:
        yield found
    finally:
        _open.remove(found)


def sync(kind: str) -> None:
    """The host waits for the device here."""
    if _open:
        place = f"{kind} {here()}"
        for counts in _open:
            counts.syncs[place] += 1


def crossing(kind: str) -> None:
    """Something is copied between devices here; the host need not wait."""
    if _open:
        place = f"{kind} {here()}"
        for counts in _open:
            counts.crossings[place] += 1


def here() -> str:
    """Innermost line of sinklens on the stack, else of whoever is neither torch nor the pretend GPU."""
    frame = sys._getframe(1)
    outside = "?"
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            return f"{name[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
        if outside == "?" and "/torch/" not in name and name not in OWN:
            outside = f"{name.split('site-packages/')[-1]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return outside
