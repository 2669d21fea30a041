"""All claims on all models, one finished cell a file, so that a killed run goes on where it stopped."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from published import geometry, heads, massive, sinks, streaming
from published.claim import REGISTRY, NotTestableError, PublishedClaim
from published.subject import QUICK, Sizes, Subject
from sinklens import load
from sinklens.errors import SinkLensError
from sinklens.evidence.bootstrap import Interval
from sinklens.results.files import write_atomically

__all__ = ["CLAIMS", "FORMAT", "Cell", "finished", "run"]

FORMAT = 1
_FILES = (sinks, geometry, massive, streaming, heads)  # importing them fills the registry
CLAIMS: Mapping[str, PublishedClaim] = REGISTRY


@dataclass(frozen=True)
class Cell:
    """One claim measured on one model.

    Attributes:
        claim: Key of the claim.
        model: Short name of the model.
        figures: What was measured; empty where it could not be.
        reason: Why not; empty otherwise.
        seconds: How long it took.
        quick: Whether it was measured on the few texts of ``--quick``.
    """

    claim: str
    model: str
    figures: Mapping[str, Interval]
    reason: str
    seconds: float
    quick: bool = False


def run(
    work: Path,
    models: Mapping[str, str],
    claims: Sequence[str],
    sizes: Sizes,
    progress: Callable[[str, int, int, float], None] = lambda text, done, total, left: None,
) -> Iterator[Cell]:
    """Measure every claim on every model, model by model.

    Args:
        work: Folder of the finished cells.
        models: Short name to what ``sinklens.load`` takes.
        claims: Keys.
        sizes: How much is measured; cells of other sizes are measured again.
        progress: Called before each cell with what goes on, cells done, cells in all, and the seconds left (NaN at
            first).
    """
    total, done, spent = len(models) * len(claims), 0, []
    for name, path in models.items():
        subject: Subject | None = None
        for key in claims:
            file = work / name / f"{key}.json"
            cell = _read(file, sizes)
            if cell is None:
                left = sum(spent) / len(spent) * (total - done) if spent else math.nan
                progress(f"{name}: {key}", done, total, left)
                started = time.perf_counter()
                subject = subject or Subject(name, load(path), sizes)
                cell = _measure(subject, CLAIMS[key], started)
                spent.append(cell.seconds)
                _write(file, cell, sizes)
            done += 1
            yield cell
    progress("done", done, total, 0.0)


def finished(work: Path, models: Sequence[str], claims: Sequence[str], sizes: Sizes) -> list[Cell]:
    """The cells that were measured already, also those of ``--quick``; nothing is measured."""
    files = [work / name / f"{key}.json" for name in models for key in claims]
    cells = (_read(file, sizes) or _read(file, QUICK) for file in files)
    return [cell for cell in cells if cell is not None]


def _measure(subject: Subject, claim: PublishedClaim, started: float) -> Cell:
    figures: dict[str, Interval] = {}
    reason = ""
    try:
        with torch.no_grad():
            figures = claim.measure(subject)
    except NotTestableError as error:
        reason = str(error)
    except SinkLensError as error:
        reason = f"sinklens refuses: {error}"
    return Cell(claim.key, subject.name, figures, reason, time.perf_counter() - started, subject.sizes == QUICK)


def _write(file: Path, cell: Cell, sizes: Sizes) -> None:
    content: dict[str, Any] = {"format": FORMAT, "sizes": asdict(sizes), "cell": asdict(cell)}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(content, indent=1).encode())


def _read(file: Path, sizes: Sizes) -> Cell | None:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if content.get("format") != FORMAT or content.get("sizes") != asdict(sizes):
        return None
    cell = content["cell"]
    figures = {name: Interval(**interval) for name, interval in cell["figures"].items()}
    return Cell(cell["claim"], cell["model"], figures, cell["reason"], cell["seconds"], sizes == QUICK)
