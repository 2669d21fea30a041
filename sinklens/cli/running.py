"""How a command works: it loads, shows how far it is, and says what is kept when it is interrupted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from sinklens.results.pace import duration
from sinklens.results.show_progress import ShowProgress


class Timed(Exception):
    """Ends a dry run."""


class DryRun(ShowProgress):
    """Ends the work as soon as it is known how long it would take, and says so."""

    def estimated(self) -> None:
        """Say it, and end."""
        self._say(self.pace.total)
        raise Timed

    def finished(self) -> None:
        """The work was over before it could be told how long it takes."""
        self._say(self.pace.spent)

    def _say(self, seconds: float) -> None:
        self._close()
        self.console.print(f"All of it takes about {duration(seconds)}.", highlight=False)


def load_model(progress: ShowProgress, model: str, **loading: Any) -> Any:
    """The model, with a sign on standard error while it is loaded; a place that is wrong is told before torch is."""
    from sinklens.models.locate import locate

    locate(model)
    with progress.console.status(f"Loading {model} ..."):
        from sinklens.models import load

        return load(model, **loading)


@contextmanager
def working(out: Path | None, parts: str | None = None) -> Iterator[ShowProgress]:
    """Progress on standard error, with warnings as notes; an interruption ends in a sentence.

    Args:
        out: Where the command saves.
        parts: What is kept there while it works, such as "finished checkpoints"; None if only the result is saved.
    """
    from rich.console import Console

    try:
        with ShowProgress(Console(stderr=True)) as progress:
            yield progress
    except KeyboardInterrupt:
        interrupted(out, parts)
        raise typer.Exit(130) from None


def interrupted(out: Path | None, parts: str | None = None) -> None:
    """Say what an interruption left, and how to go on."""
    kept = "nothing was saved; the same command begins anew"
    if parts is not None:
        kept = (
            "nothing was saved; with --out DIR the same command would go on"
            if out is None
            else f"{parts} are in {out}; the same command goes on"
        )
    typer.echo(f"Interrupted; {kept}.", err=True)
