"""Progress that remembers what it was told, for tests."""

from collections.abc import Callable
from pathlib import Path

from sinklens.results.progress import Silent


class Heard(Silent):
    """Remembers everything, and may do something at every advance, such as raise.

    Attributes:
        begun: Name, work and sentence of each beginning.
        steps: Names of steps.
        skipped: What an earlier run did.
        done: Every advance.
        notes: What was said with them.
    """

    def __init__(self, then: Callable[["Heard"], None] | None = None) -> None:
        self.begun: list[tuple[str, float, str]] = []
        self.steps: list[str] = []
        self.skipped, self.done, self.then = 0.0, list[float](), then
        self.notes: list[str] = []

    def begin(self, name: str, work: float, about: str = "") -> None:
        self.begun.append((name, work, about))

    def step(self, name: str) -> None:
        self.steps.append(name)

    def skip(self, work: float) -> None:
        self.skipped += work

    def advance(self, work: float = 1.0, note: str = "") -> None:
        self.done.append(work)
        self.notes += [note] if note else []
        if self.then is not None:
            self.then(self)

    @property
    def whole(self) -> bool:
        """Whether all that was begun was done."""
        return abs(sum(work for _, work, _ in self.begun) - self.skipped - sum(self.done)) < 1e-6


class HeardParts(Heard):
    """Watches the parts that a run saves in its folder; ``then`` is called after each.

    Attributes:
        saved: Numbers of the parts in the order in which they came.
    """

    def __init__(self, out: Path, then: Callable[["HeardParts"], None] | None = None) -> None:
        super().__init__()
        self.parts, self.each, self.saved = out / "parts", then, list[int]()
        self.known = self._found()

    def _found(self) -> set[tuple[str, int]]:
        return {(path.name, path.stat().st_mtime_ns) for path in self.parts.glob("*.zip")}

    def advance(self, work: float = 1.0, note: str = "") -> None:
        super().advance(work, note)
        for name, time in sorted(self._found() - self.known):
            self.known.add((name, time))
            self.saved.append(int(name[:5]))
            if self.each is not None:
                self.each(self)
