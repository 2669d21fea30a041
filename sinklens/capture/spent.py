"""Time by part of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def spent(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add the seconds inside ``with`` to ``seconds[part]``."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - started
