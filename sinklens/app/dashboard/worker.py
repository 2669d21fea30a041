"""One computation at a time, in a thread of its own, with progress and a way to stop it."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sinklens.errors import InputError, SinkLensError

_LOG = logging.getLogger("sinklens.dashboard")


class Cancelled(Exception):
    """The user stopped the computation."""


@dataclass(frozen=True)
class Status:
    """What the worker is doing, or how its last computation ended.

    Attributes:
        number: Counts computations; 0 before the first.
        title: What is computed.
        busy: It is still running.
        done: Steps finished.
        total: Steps in all, 0 while unknown.
        error: Why it ended without a result, one sentence; empty otherwise.
        result: What it returned.
    """

    number: int = 0
    title: str = ""
    busy: bool = False
    done: float = 0.0
    total: float = 0.0
    error: str = ""
    result: Any = None

    @property
    def share(self) -> float | None:
        """Part finished, from 0 to 1; ``None`` while the total is unknown."""
        return min(1.0, self.done / self.total) if self.total else None


@dataclass
class WorkerProgress:
    """The :class:`~sinklens.results.progress.Progress` of a computation, which ends there when it was stopped.

    Every call raises :class:`Cancelled` once the user stopped the computation.
    """

    worker: "Worker"
    stopped: threading.Event = field(default_factory=threading.Event)

    def begin(self, name: str, work: float, about: str = "") -> None:
        """So much work begins, under the title that the last step gave it."""
        self.check()
        self.worker._set(done=0.0, total=float(work))

    def step(self, name: str) -> None:
        """The next step begins, of unknown length until its work begins."""
        self.check()
        self.worker._set(done=0.0, total=0.0, title=name)

    def skip(self, work: float) -> None:
        """So much was done before."""
        self.advance(work)

    def advance(self, work: float = 1.0, note: str = "") -> None:
        """So much more is done."""
        self.check()
        self.worker._set(done=self.worker.status.done + work)

    def check(self) -> None:
        """Raise :class:`Cancelled` if the user stopped the computation."""
        if self.stopped.is_set():
            raise Cancelled


class Worker:
    """Runs one computation at a time; a second one is refused while the first runs."""

    def __init__(self) -> None:
        self.status = Status()
        self._lock = threading.Lock()
        self._progress: WorkerProgress | None = None
        self._thread: threading.Thread | None = None
        self._gives_way = False

    def start(self, title: str, work: Callable[[WorkerProgress], Any], *, gives_way: bool = False) -> int:
        """Begin a computation.

        Args:
            title: What is computed.
            work: Does it.
            gives_way: Nobody asked for it, so it is stopped when another one is to begin.

        Returns:
            Its number.

        Raises:
            InputError: Another one is running.
        """
        self._make_way()
        with self._lock:
            if self.status.busy:
                raise InputError(f"{self.status.title} is still running; wait for it or cancel it, then try again.")
            number = self.status.number + 1
            self._progress, self._gives_way = WorkerProgress(self), gives_way
            self.status = Status(number, title, busy=True)
            self._thread = threading.Thread(target=self._run, args=(work, self._progress), daemon=True)
            self._thread.start()
        return number

    def cancel(self) -> None:
        """Ask the running computation to stop; it does so when its layer is done."""
        progress = self._progress
        if progress is not None and self.status.busy:
            progress.stopped.set()
            self._set(title="Stopping after this layer")

    @property
    def idles(self) -> bool:
        """Whether it does only what nobody asked for."""
        return self._gives_way

    def wait(self, seconds: float = 60.0) -> Status:
        """Wait for the running computation and return how it ended."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self.status

    def _make_way(self) -> None:
        """Stop what nobody asked for, and wait until its layer is done."""
        progress, thread = self._progress, self._thread
        if self.status.busy and self._gives_way and progress is not None and thread is not None:
            progress.stopped.set()
            thread.join(60)

    def _run(self, work: Callable[[WorkerProgress], Any], progress: WorkerProgress) -> None:
        error, result = "", None
        try:
            result = work(progress)
        except Cancelled:
            error = "Cancelled; nothing was kept of it."
        except SinkLensError as reason:
            error = str(reason)
        except Exception as reason:  # a failing model must not take the page with it
            _LOG.exception("A computation failed")
            error = f"The computation failed: {type(reason).__name__}: {str(reason)[:300]}"
        self._set(busy=False, error=error, result=result)

    def _set(self, **changes: Any) -> None:
        with self._lock:
            self.status = replace(self.status, **changes)
