"""One induction training, from settings to a folder that explains itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sinklens.lab.folders import STATE, forget, work_in
from sinklens.lab.induction.measure import measure
from sinklens.lab.induction.publish import TASK, publish
from sinklens.lab.induction.seeds import keep_seeds
from sinklens.lab.induction.settings import InductionSettings
from sinklens.lab.induction.training import train
from sinklens.lab.running import move
from sinklens.results.progress import SILENT, Progress


def train_induction(
    out: str | Path,
    *,
    beside: Sequence[str | Path] = (),
    device: str = "auto",
    checkpoint_every: int = 200,
    resume: bool = True,
    progress: Progress = SILENT,
    **settings: Any,
) -> Path:
    """Train a model of two attention layers to find needles, and write it as a Hugging Face directory.

    `out` receives config.json, model.safetensors, the tokenizer's files, recipe.json (settings, versions, seconds),
    measured.json (the figures of `measure`) and README.md. On one machine with one number of threads, equal settings
    give equal weights, interrupted or not: killed at any moment, the same call goes on from the last checkpoint. A
    finished folder with the same settings is left as it is, apart from the table of seeds.

    Cost: the defaults take about five minutes on one CPU thread and half a gigabyte of memory.

    Args:
        out: the target folder; new, empty, or one that this function wrote to before.
        beside: folders of finished models of other seeds, whose figures go into the card of this one, see `keep_seeds`.
        device: "auto" (CUDA if there is one), "cpu" or "cuda". The data is drawn on the CPU, alike for all devices.
        checkpoint_every: steps between two checkpoints.
        resume: go on from a checkpoint, and leave a finished training; if False, start anew and replace both.
        progress: told how it goes on.
        **settings: fields of `InductionSettings`.

    Returns:
        The folder.

    Raises:
        InputError: if a setting is out of range, there is no CUDA for `device="cuda"`, `out` holds something else, or
            the loss stops being finite.
        ResultError: if the checkpoint or the finished model in `out` has other settings or is damaged, or the folder
            cannot be written.
    """
    chosen = InductionSettings(**settings)
    target, place, finished = work_in(
        out, TASK, chosen.to_dict(), device=device, checkpoint_every=checkpoint_every, resume=resume
    )
    if not finished:
        model, seconds = train(chosen, target / STATE, place, checkpoint_every, progress)
        move(model, torch.device("cpu"))
        publish(target, model, chosen, measure(model, chosen), seconds=seconds, device=place.type)
        forget(target)
    if beside:
        keep_seeds(target, [Path(folder) for folder in beside])
    return target
