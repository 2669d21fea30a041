"""Progress where a person sees it: a bar in a terminal, lines in a log, one line that changes in a notebook."""

import warnings
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console

from sinklens.results.pace import Pace, duration


class ShowProgress:
    """Shows how far work has come, and says how long it will take as soon as its first pieces are done.

    ::

        sinklens.scan("tiny-llama", progress=ShowProgress())

    In a terminal a bar is drawn on standard error and taken away at the end; elsewhere a line is written every ten
    seconds; in a notebook one line below the cell changes. Work of less than ten seconds is not announced. As a
    context manager it also writes warnings as notes beside the bar, and takes the bar away after an exception.

    Args:
        console: Where to write; default: standard error, or the notebook.
        announce: Say how long it takes from so many seconds on.
    """

    EVERY = 10.0

    def __init__(self, console: Console | None = None, announce: float = 10.0) -> None:
        found = Console() if console is None else console
        self.console = found if console is not None or found.is_jupyter else Console(stderr=True)
        self.announce = announce
        self.pace = Pace(0.0)
        self._name, self._state, self._said, self._told = "", "", 0.0, True
        self._shown: _Shown | None = None
        self._warnings: Any = None

    def begin(self, name: str, work: float, about: str = "") -> None:
        """Show the beginning of work."""
        self._close()
        if about:
            self.console.print(about, markup=False, highlight=False, soft_wrap=True)
        self.pace, self._name, self._state, self._said, self._told = Pace(work), name, "", 0.0, False
        self._shown = _shown(self.console)
        self._shown.show(name, "", 0.0, float("inf"))

    def step(self, name: str) -> None:
        """Show another name."""
        self._name, self._state = name, ""
        if self._shown is not None:
            self._shown.named(name)

    def skip(self, work: float) -> None:
        """Show what was done before."""
        self.pace.skip(work)

    def advance(self, work: float = 1.0, note: str = "") -> None:
        """Show how far it has come."""
        self._state = note or self._state
        self.pace.advance(work)
        share = min(1.0, self.pace.done / self.pace.work) if self.pace.work else 0.0
        if not self._told and self.pace.known:
            self._told = True
            self._said = self.pace.spent
            self.estimated()
        if self._shown is None:
            return
        if not self._shown.seldom or self.pace.spent - self._said >= self.EVERY:
            self._said = self.pace.spent
            self._shown.show(self._name, self._state, share, self.pace.left)
        if self.pace.done >= self.pace.work - 1e-9:
            self._close()

    def estimated(self) -> None:
        """Say how long all of it takes, which is known now."""
        if self.pace.total >= self.announce:
            words = f"This takes about {duration(self.pace.total)}; {duration(self.pace.left)} are left."
            self.console.print(words, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "ShowProgress":
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.showwarning = self._note
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self._warnings.__exit__(kind, error, trace)

    def _note(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        self.console.print(f"Note: {message}", markup=False, highlight=False, soft_wrap=True)

    def _close(self) -> None:
        if self._shown is not None:
            self._shown.close()
        self._shown = None


def _with(name: str, state: str) -> str:
    return f"{name}, {state}" if state else name


class _Shown(Protocol):
    seldom: bool

    def named(self, name: str) -> None: ...
    def show(self, name: str, state: str, share: float, left: float) -> None: ...
    def close(self) -> None: ...


def _shown(console: Console) -> _Shown:
    if console.is_jupyter:
        return _Cell()
    return _Bar(console) if console.is_terminal else _Lines(console)


class _Bar:
    """A bar in a terminal, gone when closed."""

    seldom = False

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[left]}"), console=console, transient=True)
        self._task = self._bar.add_task("", total=1.0, left="")
        self._bar.start()

    def named(self, name: str) -> None:
        self._bar.update(self._task, description=name)

    def show(self, name: str, state: str, share: float, left: float) -> None:
        words = "" if left == float("inf") else f"{duration(left)} left"
        self._bar.update(self._task, description=_with(name, state), completed=share, left=words)

    def close(self) -> None:
        self._bar.stop()


class _Lines:
    """A line now and then, where no terminal can change what stands there."""

    seldom = True

    def __init__(self, console: Console) -> None:
        self._console = console

    def named(self, name: str) -> None:
        self._console.print(name, markup=False, highlight=False, soft_wrap=True)

    def show(self, name: str, state: str, share: float, left: float) -> None:
        if share:
            words = f"{_with(f'{share:.0%} done', state)}, about {duration(left)} left"
            self._console.print(words, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        pass


class _Cell:
    """One line of text below a notebook's cell, which changes."""

    seldom = False

    def __init__(self) -> None:
        from IPython.display import display

        self._handle: Any = display({"text/plain": ""}, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def named(self, name: str) -> None:
        self._write(name)

    def show(self, name: str, state: str, share: float, left: float) -> None:
        words = "" if left == float("inf") else f", {duration(left)} left"
        filled = round(20 * share)
        self._write(f"{_with(name, state)}  {'█' * filled}{'░' * (20 - filled)} {share:.0%}{words}")

    def close(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        if self._handle is not None:
            self._handle.update({"text/plain": text}, raw=True)
