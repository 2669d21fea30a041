"""Parts of a sweep on a pool of local processes, of which any may die."""

import contextlib
import multiprocessing
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from sinklens.errors import SinkLensError
from sinklens.studies.ablation.recipe import ModelRecipe
from sinklens.studies.ablation.worker import Job, OnShare, Results, run_on_worker

RETRIES = 3
"""How often a part is run again after its worker died."""


class WorkerLostError(SinkLensError):
    """Workers died again and again."""


class ProcessPool:
    """Fresh (spawned) processes that each load the model once and compute with one thread.

    A worker that dies (out of memory, killed) is replaced and its part is run again, up to three times. What a worker
    raises is raised here. When the parent dies, its workers end.

    A script that starts a sweep with processes must do so under ``if __name__ == "__main__":``, as always with
    spawned processes.

    Args:
        count: How many processes.
    """

    def __init__(self, count: int) -> None:
        self.name, self.workers = f"processes:{count}", count
        self._idle: list[_Worker] = []

    def run(self, tasks: Sequence[Job], recipe: ModelRecipe, on_share: OnShare) -> Results:
        """Yield every part with its table as it is finished.

        Raises:
            WorkerLostError: A part lost its worker four times, or workers die before they begin.
        """
        recipe.planned_name()
        waiting = deque(tasks)
        lost: dict[int, int] = {}
        workers, self._idle = self._idle, []
        workers += [_Worker(recipe.for_worker(number)) for number in range(len(workers), min(self.workers, len(tasks)))]
        try:
            while waiting or any(worker.task for worker in workers):
                for worker in workers:
                    if waiting and worker.task is None:
                        worker.give(waiting.popleft())
                ready = wait([end for worker in workers for end in (worker.pipe, worker.process.sentinel)])
                for worker in [w for w in workers if w.pipe in ready or w.process.sentinel in ready]:
                    task = worker.task
                    try:
                        kind, content = worker.pipe.recv()
                    except (EOFError, OSError):
                        worker.process.join(5)  # its pipe closes a moment before it is gone
                        worker.stop()
                        workers.remove(worker)
                        if task is not None:
                            lost[task.part.number] = lost.get(task.part.number, 0) + 1
                            self._give_up(worker, task, lost[task.part.number])
                            waiting.appendleft(task)
                            workers.append(_Worker(worker.recipe))
                        continue
                    if kind == "error":
                        raise content
                    if kind == "share" and task is not None:
                        on_share(task.part.number, content)
                    elif task is not None:
                        worker.task = None
                        yield task.part, content
        finally:
            self._idle = [worker for worker in workers if worker.task is None]
            for worker in workers:
                if worker.task is not None:
                    worker.stop()

    def close(self) -> None:
        """End all processes."""
        for worker in self._idle:
            worker.stop()
        self._idle = []

    def _give_up(self, worker: "_Worker", task: Job, times: int) -> None:
        if times <= RETRIES:
            return
        status = worker.process.exitcode
        why = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        raise WorkerLostError(
            f"Part {task.part.number} lost its worker process {times} times (the last by {why}), often for lack of "
            f"memory: use fewer processes or a smaller batch; a script must start its sweep under "
            'if __name__ == "__main__".'
        )


class _Worker:
    """One process and the part in its hand."""

    task: Job | None = None

    def __init__(self, recipe: ModelRecipe) -> None:
        self.recipe = recipe
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, recipe), daemon=True)
        self.process.start()
        theirs.close()  # so that its death closes the pipe

    def give(self, task: Job) -> None:
        self.task = task
        with contextlib.suppress(OSError):  # it died; found out when its pipe is read
            self.pipe.send(task)

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(0.1 if self.task is None else 0)  # an idle one ends by itself
        self.process.kill()
        self.process.join()


def _work(pipe: Connection, recipe: ModelRecipe) -> None:
    """The life of a worker: parts from the pipe, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers itself
    warnings.simplefilter("ignore", UserWarning)  # said once, by the parent
    torch.set_num_threads(1)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[str, Any] = ("done", run_on_worker(recipe, task, lambda share: pipe.send(("share", share))))
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            answer = ("error", _portable(error))
        try:
            pipe.send(answer)
        except OSError:
            return


def _portable(error: Exception) -> Exception:
    """The error as it can be sent: sinklens' own as it is, any other as its text with the worker's traceback."""
    if isinstance(error, SinkLensError):
        return error
    return RuntimeError(f"A worker failed: {error}\n{''.join(traceback.format_exception(error))}")
