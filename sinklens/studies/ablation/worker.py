"""What every executor promises, and what each of its workers does."""

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.studies.ablation.recipe import ModelRecipe

OnShare = Callable[[int, float], None]
"""Receives a part's number and the share of it that is done, as far as that is known before it is finished."""


class Job(Protocol):
    """A part with all that is needed to compute it; can be pickled."""

    @property
    def part(self) -> Any:
        """What it is of the whole; it has a ``number``."""

    def run(self, model: TransformerBridge, on_share: Callable[[float], None] | None = None) -> pd.DataFrame:
        """Compute it, telling now and then which share of it is done."""


Results = Generator[tuple[Any, pd.DataFrame], None, None]
"""Parts with their tables, as they are finished; closing it stops the rest."""


class Executor(Protocol):
    """Computes tasks in any order and place; the same tasks give the same tables to about 1e-6."""

    name: str
    """``"serial"``, ``"processes:4"`` or an address."""

    workers: int
    """How many parts are computed at once on this machine."""

    def run(self, tasks: Sequence[Job], recipe: ModelRecipe, on_share: OnShare) -> Results:
        """Yield every part with its table as it is finished; closing the iterator stops the rest."""
        ...

    def close(self) -> None:
        """Let go of workers, which otherwise wait for more."""
        ...


_loaded: dict[ModelRecipe, TransformerBridge] = {}
_loaded_lock = threading.Lock()


def run_on_worker(recipe: ModelRecipe, task: Job, on_share: Callable[[float], None] | None = None) -> pd.DataFrame:
    """Compute a part in a process that may not have the model yet; it is loaded once and kept.

    Threads of one process take turns: a model runs one intervention at a time.
    """
    with _loaded_lock:
        if recipe not in _loaded:
            _loaded.clear()  # one model at a time
            _loaded[recipe] = recipe.load()
        return task.run(_loaded[recipe], on_share)
