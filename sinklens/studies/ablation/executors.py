"""Who computes the parts of a sweep: this process, a pool of local ones, or a Dask cluster."""

import os
import re
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.studies.ablation.parts import Part
from sinklens.studies.ablation.recipe import ModelRecipe
from sinklens.studies.ablation.tasks import Task, run_task

OnShare = Callable[[int, float], None]
"""Receives a part's number and the share of it that is done, as far as that is known before it is finished."""


Results = Generator[tuple[Part, pd.DataFrame], None, None]
"""Parts with their tables, as they are finished; closing it stops the rest."""


class Executor(Protocol):
    """Computes tasks in any order and place; the same tasks give the same tables to about 1e-6."""

    name: str
    """``"serial"``, ``"processes:4"`` or an address."""

    workers: int
    """How many parts are computed at once on this machine."""

    def run(self, tasks: Sequence[Task], recipe: ModelRecipe, on_share: OnShare) -> Results:
        """Yield every part with its table as it is finished; closing the iterator stops the rest."""
        ...

    def close(self) -> None:
        """Let go of workers, which otherwise wait for more."""
        ...


ADDRESS = r"(tcp|tls|ucx|ws|wss|inproc)://.+"


def check_executor(name: str) -> None:
    """Refuse a name that :func:`parse_executor` does not take, before a model is loaded.

    Raises:
        InputError: It is none.
    """
    if name == "serial" or re.fullmatch(r"processes(:0*[1-9]\d*)?", name) or re.fullmatch(ADDRESS, name):
        return
    raise InputError(
        "The executor must be serial, processes, processes:N or the address of a Dask scheduler such as "
        f"tcp://host:8786; got {name!r}."
    )


def loading_here(executor: str, loading: Mapping[str, Any]) -> dict[str, Any]:
    """How the process that plans a sweep loads the model: on the CPU when workers load their own."""
    device = str(loading.get("device") or "auto").replace("{i}", "0")
    return {**loading, "device": device if executor == "serial" else "cpu"}


def parse_executor(name: str, model: TransformerBridge) -> Executor:
    """The executor that a name stands for.

    Args:
        name: ``"serial"``, ``"processes"`` or ``"processes:4"`` (without a number: one for each CPU core), or the
            address of a Dask scheduler, ``"tcp://host:8786"`` or ``"tls://host:8786"``.
        model: What the serial executor runs.

    Raises:
        InputError: None of these.
    """
    check_executor(name)
    if name == "serial":
        return Serial(model)
    if name.startswith("processes"):
        from sinklens.studies.ablation.process_pool import ProcessPool

        return ProcessPool(int(name.partition(":")[2] or _cores()))
    from sinklens.studies.ablation.dask_cluster import DaskCluster

    return DaskCluster(name)


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Serial:
    """One part after another, in this process, on the model as it is."""

    name = "serial"
    workers = 1

    def __init__(self, model: TransformerBridge) -> None:
        self.model = model

    def run(self, tasks: Sequence[Task], recipe: ModelRecipe, on_share: OnShare) -> Results:
        """Yield every part with its table."""
        for task in tasks:
            yield task.part, run_task(self.model, task, partial(on_share, task.part.number))

    def close(self) -> None:
        """Nothing is held."""


_loaded: dict[ModelRecipe, TransformerBridge] = {}
_loaded_lock = threading.Lock()


def run_on_worker(recipe: ModelRecipe, task: Task, on_share: Callable[[float], None] | None = None) -> pd.DataFrame:
    """Compute a part in a process that may not have the model yet; it is loaded once and kept.

    Threads of one process take turns: a model runs one intervention at a time.
    """
    with _loaded_lock:
        if recipe not in _loaded:
            _loaded.clear()  # one model at a time
            _loaded[recipe] = recipe.load()
        return run_task(_loaded[recipe], task, on_share)
