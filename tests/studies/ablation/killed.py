"""A sweep in a process of its own, for tests that kill it; imported by that process."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sinklens.studies import sweep
from tests.heard import HeardParts

INTERVENTIONS = ("zero", "mean")


def run_sweep(model: str, ids: Sequence[Sequence[int]], out: str, log: str) -> None:
    """Sweep every head one sequence at a time, then the top sets; each part that was saved gets a line in ``log``."""
    torch.set_num_threads(1)

    def saved(heard: HeardParts) -> None:
        with Path(log).open("a") as file:
            file.write(f"{heard.saved[-1]}\n")

    progress = HeardParts(Path(out), saved)
    sweep(model, INTERVENTIONS, tokens=ids, ranking="own", controls=1, out=out, batch_size=1, progress=progress)
