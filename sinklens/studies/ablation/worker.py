"""What every executor promises, and what each of its workers does."""

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

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
