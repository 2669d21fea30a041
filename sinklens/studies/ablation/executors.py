"""Who computes the parts of a sweep: this process, a pool of local ones, or a Dask cluster."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from sinklens.studies.ablation.dask_cluster import DaskCluster
from sinklens.studies.ablation.executor_name import check_executor
from sinklens.studies.ablation.process_pool import ProcessPool
from sinklens.studies.ablation.recipe import ModelRecipe
from sinklens.studies.ablation.worker import Executor, Job, OnShare, Results


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
        return ProcessPool(int(name.partition(":")[2] or _cores()))
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

    def run(self, tasks: Sequence[Job], recipe: ModelRecipe, on_share: OnShare) -> Results:
        """Yield every part with its table."""
        for task in tasks:
            yield task.part, task.run(self.model, partial(on_share, task.part.number))

    def close(self) -> None:
        """Nothing is held."""
