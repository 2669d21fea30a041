"""One cell of the emergence table: a condition with a seed, trained and measured once, then read from its file."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sinklens.errors import InputError, ResultError
from sinklens.lab.emergence.conditions import Condition
from sinklens.lab.folders import json_bytes, refuse_other
from sinklens.lab.tasks import Backcopy
from sinklens.lab.variants.decoder import Decoder
from sinklens.lab.variants.measure import measure_decoder
from sinklens.lab.variants.settings import VariantSettings
from sinklens.lab.variants.training import build_decoder, train_decoder
from sinklens.results.files import write_atomically
from sinklens.results.progress import SILENT, Progress

_FORMAT = 1


@dataclass(frozen=True)
class Cell:
    """What one training ended with.

    Attributes:
        condition: name of the row.
        seed: its seed.
        settings: what was trained.
        measured: figures of :func:`~sinklens.lab.variants.measure.measure_decoder`.
        seconds: time the training took.
    """

    condition: str
    seed: int
    settings: dict[str, Any]
    measured: dict[str, float]
    seconds: float

    def figure(self, name: str) -> float:
        """Return a figure of the model, or of its sink layer; residual figures are those after layer 0.

        NaN if it was not measured. Residual growth is told after layer 0, where the study reads it.
        """
        if name in self.measured:
            return self.measured[name]
        layer = 0 if name.startswith("resid_") else int(self.measured["sink_layer"])
        return self.measured.get(f"L{layer}.{name}", math.nan)


def cell_path(folder: Path, condition: Condition, seed: int) -> Path:
    """Return the file of a cell.

    Example:
        >>> cell_path(Path("out"), Condition("k-bias, no BOS", "no BOS"), 2).name
        'k-bias_no_BOS_s2.json'
    """
    slug = re.sub(r"[^A-Za-z0-9.-]+", "_", condition.name)
    return folder / "cells" / f"{slug}_s{seed}.json"


def run_cell(folder: Path, condition: Condition, seed: int, *, progress: Progress = SILENT) -> Cell:
    """Train and measure, or read what was measured before; an interrupted training goes on from its checkpoint.

    The last checkpoint stays beside the figures (0.8 MB for one layer of width 64), so that a cell whose figures are
    deleted is measured again without training.

    Raises:
        ResultError: if the cell's file or checkpoint is damaged or of other settings, or cannot be written.
        InputError: if the loss stops being finite.
    """
    path, settings = cell_path(folder, condition, seed), condition.settings(seed)
    if path.exists():
        cell = read_cell(path)
        refuse_other(settings.to_dict(), cell.settings, f"{path} holds a cell")
        return cell
    checkpoint = path.with_suffix(".pt")
    model, seconds = train_decoder(settings, checkpoint=checkpoint, checkpoint_every=400, progress=progress)
    cell = Cell(condition.name, seed, settings.to_dict(), _measure(model, settings), seconds)
    write_atomically(path, json_bytes(_to_json(cell)))
    return cell


def read_cell(path: Path) -> Cell:
    """Read a cell's file.

    Raises:
        ResultError: if it is damaged or of a newer format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = int(content["format"])
        figures = {name: math.nan if v is None else float(v) for name, v in content["measured"].items()}
        cell = Cell(content["condition"], content["seed"], content["settings"], figures, content["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path} is no cell of the emergence table or is damaged; delete it.") from error
    if version > _FORMAT:
        raise ResultError(f"{path} has format {version} and this version of sinklens reads up to {_FORMAT}.")
    return cell


def _measure(model: Decoder, settings: VariantSettings) -> dict[str, float]:
    task = settings.data
    if not isinstance(task, Backcopy):
        raise InputError(f"The emergence table is measured on the backcopy task, not on {settings.task!r}.")
    return measure_decoder(model, task, initial=build_decoder(settings).eval())


def _to_json(cell: Cell) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "condition": cell.condition,
        "seed": cell.seed,
        "settings": cell.settings,
        "measured": {name: float(f"{v:.6g}") if math.isfinite(v) else None for name, v in cell.measured.items()},
        "seconds": round(cell.seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
