"""Heads side by side on a CPU: a few threads that each run small operations alone.

Thousands of small operations that each wake all cores spend their time waiting for each other, most of all
on a machine that also does something else. Threads that own different heads never wait.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Unit = TypeVar("Unit")

MOST_WORKERS = 8


def run_units(work: Callable[[Unit], None], units: Sequence[Unit], *, parallel: bool) -> None:
    """Call ``work`` on every unit, in threads when ``parallel`` and worth it; the first exception is raised.

    While the threads run, torch's intra-operation threads are shared out among them; the setting is restored.
    Units must touch disjoint data. Gradients are off inside, as they are for all callers.
    """
    available = torch.get_num_threads()
    workers = min(available, len(units), MOST_WORKERS)
    if not parallel or workers < 2:
        for unit in units:
            work(unit)
        return

    def alone(unit: Unit) -> None:
        with torch.no_grad():
            work(unit)

    # new threads take over the number of operation threads that is set when they start
    with _operation_threads(available // workers), ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(alone, units):
            pass


@contextmanager
def _operation_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
