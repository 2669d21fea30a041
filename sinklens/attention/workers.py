"""Heads side by side on a CPU: the threads of torch's own products (OpenMP's) each run small operations alone.

Thousands of small operations that each wake all cores spend their time waiting for each other. Threads that own
different heads never wait; and threads of our own would find the cores held, because OpenMP's go on spinning for
milliseconds after a product, waiting for the next one. So these very threads are asked.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

Unit = TypeVar("Unit")

MOST_WORKERS = 8


def run_units(work: Callable[[Unit], None], units: Sequence[Unit], *, parallel: bool) -> None:
    """Call ``work`` on every unit, in threads when ``parallel`` and worth it; the first exception is raised.

    Threads take the next unit when they have done one, so that the largest should come first. Within a unit torch
    computes with one thread. Units must touch disjoint data. Gradients are off inside, as they are for all callers.
    """
    workers = min(torch.get_num_threads(), len(units), MOST_WORKERS)
    if not parallel or workers < 2:
        for unit in units:
            work(unit)
        return

    inference = torch.is_inference_mode_enabled()
    left, places, failed = iter(units), iter(range(workers)), list[BaseException]()

    def share() -> None:
        if next(places, None) is None:  # a team is never made smaller: its other threads would end
            return
        try:
            with torch.inference_mode(inference), torch.no_grad():  # modes are a thread's own
                for unit in left:
                    work(unit)
                    if failed:
                        return
        except BaseException as error:  # of a thread that Python did not start: it would be printed and lost
            failed.append(error)

    (_team() or _threads)(share)
    if failed:
        raise failed[0]


@cache
def _team() -> Callable[[Callable[[], None]], None] | None:
    """What calls a function once in every thread of OpenMP's team; None where torch has another kind of threads."""
    try:
        # the symbol of the runtime that torch itself is linked with, of which a process may hold several
        start = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    start.argtypes, start.restype = [function, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None

    def everywhere(share: Callable[[], None]) -> None:
        start(function(lambda _: share()), None, torch.get_num_threads(), 0)

    return everywhere


def _threads(share: Callable[[], None]) -> None:
    """The same with threads of our own, among which torch's are shared out."""
    before = torch.get_num_threads()

    def alone() -> None:
        torch.set_num_threads(1)
        share()

    others = [threading.Thread(target=alone) for _ in range(min(before, MOST_WORKERS) - 1)]
    for other in others:
        other.start()
    try:
        alone()
    finally:
        for other in others:
            other.join()
        torch.set_num_threads(before)
