"""Where a command saves: looked at before the work, filled before anything is printed."""

from pathlib import Path
from typing import Any


def check_out(out: Path | None, kind: str, work: str | None = None) -> None:
    """Find out before the work whether its result can be saved, not after it.

    Args:
        out: Where to; None where nothing is saved.
        kind: The result's ``format``.
        work: What the work is called, of commands that keep finished parts there.

    Raises:
        ResultError: The place cannot be written, holds something else, or the work of another run.
    """
    if out is None:
        return
    if work is None:
        from sinklens.results.place import check_writable

        check_writable(out, kind)
    else:
        from sinklens.results import RunFolder

        RunFolder(out, kind, work).check()


def save_in(out: Path | None, found: Any, *, kept: bool = False) -> list[str]:
    """Save a result and its report; the lines that say where they are, none where nothing is saved.

    Args:
        out: Where to.
        found: The result.
        kept: Whether its tables lie there already.
    """
    if out is None:
        return []
    if not kept:
        found.save(out)
    return [f"Report: {found.report(out / 'report.html')}", f"Tables: {out}"]
