"""Heads side by side on a CPU: a few threads that each run small operations alone.

Thousands of small operations that each wake all cores spend their time waiting for each other, most of all
on a machine that also does something else. Threads that own different heads never wait.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

Unit = TypeVar("Unit")

MOST_WORKERS = 8


def run_units(work: Callable[[Unit], None], units: Sequence[Unit], *, parallel: bool) -> None:
    """Call ``work`` on every unit, in threads when ``parallel`` and worth it; the first exception is raised.

    This thread takes a share of the units like the others. While they run, torch's intra-operation threads are shared
    out among them; the setting is restored. Units must touch disjoint data. Gradients are off inside, as they are for
    all callers.
    """
    available = torch.get_num_threads()
    workers = min(available, len(units), MOST_WORKERS)
    if not parallel or workers < 2:
        for unit in units:
            work(unit)
        return

    each, inference = available // workers, torch.is_inference_mode_enabled()

    def share(first: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # modes are a thread's own
            torch.set_num_threads(each)  # of this thread: those of the pool keep what they were told last
            for unit in units[first::workers]:
                work(unit)

    with _operation_threads(each):
        others = [_pool().submit(share, first) for first in range(1, workers)]
        try:
            share(0)
        finally:
            wait(others)
        for other in others:
            other.result()


_pools: dict[int, ThreadPoolExecutor] = {}


def _pool() -> ThreadPoolExecutor:
    """Threads that stay for the next call, as new ones would cost more than a layer of 512 tokens saves with them.

    They are this process' own: a fork has none of them.
    """
    here = os.getpid()
    if here not in _pools:
        _pools.clear()
        _pools[here] = ThreadPoolExecutor(MOST_WORKERS - 1, "sinklens")
    return _pools[here]


@contextmanager
def _operation_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
