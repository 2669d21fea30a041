"""Parts of a sweep on a running Dask cluster, on one machine or many."""

import contextlib
import uuid
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pandas as pd

from sinklens.errors import InputError, MissingExtraError, SinkLensError
from sinklens.studies.ablation.recipe import ModelRecipe
from sinklens.studies.ablation.worker import Job, OnShare, Results, run_on_worker

RETRIES = 3
CONNECT_SECONDS = 10


class DaskCluster:
    """Workers of a Dask scheduler; each loads the model once, and one part at a time is computed in each process.

    Dask runs the parts of a lost worker again elsewhere (up to three times a part). Tables come back to the client,
    which alone writes to disk. Workers need the same sinklens and the model under the same name or path.

    Args:
        address: Of the scheduler, such as ``"tcp://host:8786"``.
    """

    workers = 1

    def __init__(self, address: str) -> None:
        self.name = self.address = address
        self._client: Any = None

    def run(self, tasks: Sequence[Job], recipe: ModelRecipe, on_share: OnShare) -> Results:
        """Yield every part with its table as it is finished.

        Raises:
            MissingExtraError: Dask is not installed.
            InputError: No scheduler answers, or its workers cannot compute the parts.
        """
        if "{i}" in recipe.device:
            raise InputError(
                "On a Dask cluster give each worker its own GPU with CUDA_VISIBLE_DEVICES and use --device cuda; "
                f"{recipe.device!r} is for local processes."
            )
        recipe.planned_name()
        distributed = _distributed()
        if self._client is None:
            self._client = self._connect(distributed)
        client = self._client
        if not client.scheduler_info()["workers"]:
            warnings.warn(f"The Dask cluster at {self.address} has no workers yet; waiting for some.", stacklevel=2)
        futures = {}
        try:
            for task in tasks:
                key = f"sinklens-part-{task.part.number}-{uuid.uuid4().hex}"
                futures[client.submit(_answer, recipe, task, key=key, retries=RETRIES)] = task.part
            for future in distributed.as_completed(list(futures), loop=client.loop):
                answer = self._result(distributed, future)
                part = futures.pop(future)
                future.release()
                yield part, answer
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be gone
                client.cancel(list(futures))

    def close(self) -> None:
        """Leave the cluster, which goes on running."""
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close()
            self._client = None

    def _connect(self, distributed: Any) -> Any:
        try:
            return distributed.Client(self.address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(
                f"No Dask scheduler answers at {self.address}; start one with 'dask scheduler' and workers with "
                "'dask worker ADDRESS', or check the address."
            ) from error

    def _result(self, distributed: Any, future: Any) -> pd.DataFrame:
        try:
            answer = future.result()
        except distributed.KilledWorker as error:
            raise InputError(
                f"A part lost its Dask worker again and again (last {error.last_worker.address}), often for lack "
                "of memory: give the workers more, or use a smaller batch."
            ) from error
        except distributed.CancelledError as error:
            raise InputError(
                f"The Dask scheduler at {self.address} was lost; finished parts are kept in --out (out=...), and the "
                "same call goes on once it is back."
            ) from error
        except ModuleNotFoundError as error:
            raise InputError(
                f"The Dask workers cannot import {error.name}; install the same sinklens on them as here."
            ) from error
        if isinstance(answer, SinkLensError):
            raise answer
        return answer  # type: ignore[no-any-return]


def _distributed() -> Any:
    try:
        return import_module("distributed")
    except ImportError as error:
        raise MissingExtraError(
            "A Dask cluster needs the package distributed; install it with pip install 'sinklens[cluster]'."
        ) from error


def _answer(recipe: ModelRecipe, task: Job) -> pd.DataFrame | SinkLensError:
    """The part's table, or the error that running it again would not mend."""
    try:
        return run_on_worker(recipe, task)
    except SinkLensError as error:
        return error
