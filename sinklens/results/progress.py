"""How far long work has come: one way to tell it, from a single pass to a whole study."""

from typing import Protocol


class Progress(Protocol):
    """Whom long work tells how it goes on; functions take one as ``progress=``.

    Work is counted in any unit, as long as equal work takes about equal time: what is left is then known from the pace
    so far. An exception raised here ends the work, which restores the model as after any other.
    :class:`~sinklens.results.show_progress.ShowProgress` shows it in a terminal, a log or a notebook.
    """

    def begin(self, name: str, work: float, about: str = "") -> None:
        """So much work begins.

        Args:
            name: What is done, in two or three words.
            work: How much it is in all.
            about: A sentence on what is about to be done.
        """

    def step(self, name: str) -> None:
        """The next step of the same work begins."""

    def skip(self, work: float) -> None:
        """So much need not be done, because an earlier run did it: it counts, and says nothing about the pace."""

    def advance(self, work: float = 1.0, note: str = "") -> None:
        """So much more is done; ``note`` is how it stands now, such as a loss, to be shown until the next one."""


class Silent:
    """Says nothing; what functions use unless they are given another."""

    def begin(self, name: str, work: float, about: str = "") -> None:
        """Nothing."""

    def step(self, name: str) -> None:
        """Nothing."""

    def skip(self, work: float) -> None:
        """Nothing."""

    def advance(self, work: float = 1.0, note: str = "") -> None:
        """Nothing."""


SILENT = Silent()


class Share:
    """A part of longer work that is told as work of its own, in units of its own.

    >>> class Count(Silent):
    ...     done = 0.0
    ...
    ...     def advance(self, work=1.0, note=""):
    ...         self.done += work
    >>> whole = Count()
    >>> part = Share(whole, 10)
    >>> part.begin("Reading", 4)
    >>> part.advance(3)
    >>> whole.done
    7.5
    >>> part.finish()  # what was estimated too high
    >>> whole.done
    10.0

    Args:
        whole: Who hears of the longer work.
        work: How much of it this part is.
    """

    def __init__(self, whole: Progress, work: float) -> None:
        self.whole, self.left = whole, float(work)
        self._scale = 0.0

    def begin(self, name: str, work: float, about: str = "") -> None:
        """So much work begins, which is all that is left of this part."""
        self._scale = self.left / work if work else 0.0

    def step(self, name: str) -> None:
        """The next step begins."""
        self.whole.step(name)

    def skip(self, work: float) -> None:
        """So much was done by an earlier run."""
        self.whole.skip(self._take(work))

    def advance(self, work: float = 1.0, note: str = "") -> None:
        """So much more is done."""
        self.whole.advance(self._take(work), note)

    def finish(self) -> None:
        """The part is over, whatever it told."""
        if self.left > 0:
            self.whole.advance(self.left)
        self.left = 0.0

    def _take(self, work: float) -> float:
        taken = min(work * self._scale, self.left)
        self.left -= taken
        return taken
