"""One induction training, from settings to a folder that explains itself."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sinklens.errors import InputError, ResultError
from sinklens.lab.folders import STATE, forget, json_bytes, read_recipe, refuse_other, work_in
from sinklens.lab.induction.measure import measure
from sinklens.lab.induction.publish import TASK, model_card, publish
from sinklens.lab.induction.settings import InductionSettings
from sinklens.lab.induction.training import train
from sinklens.lab.report import read_measured
from sinklens.lab.running import move
from sinklens.results.files import write_atomically
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


def keep_seeds(folder: Path, others: Sequence[Path]) -> None:
    """Put the figures of models that differ in their seed alone beside those of `folder`.

    Writes seeds.json (every figure that is not of one head, by seed) and the model card anew, with the least and the
    greatest value over all seeds beside each gate.

    Args:
        folder: a finished model.
        others: folders of finished models with the same settings but for the seed.

    Raises:
        InputError: if two have one seed.
        ResultError: if a model is not finished, has other settings, or its files are damaged.
    """
    own, by_seed = _settings(folder), dict[int, dict[str, float]]()
    for place in (folder, *others):
        settings = _settings(place)
        refuse_other(own.to_dict(), settings.to_dict() | {"seed": own.seed}, f"{place} holds a model")
        if settings.seed in by_seed:
            raise InputError(f"{place} has seed {settings.seed} like another of these models; train it with its own.")
        by_seed[settings.seed] = {name: value for name, value in read_measured(place).items() if not _of_a_head(name)}
    seconds = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["seconds"]
    table: dict[str, Any] = {str(seed): by_seed[seed] for seed in sorted(by_seed)}
    card = model_card(own, read_measured(folder), {seed: by_seed[seed] for seed in sorted(by_seed)}, seconds)
    write_atomically(folder / "seeds.json", json_bytes(table))
    write_atomically(folder / "README.md", card.encode())


def _settings(folder: Path) -> InductionSettings:
    saved = read_recipe(folder, TASK)
    if saved is None:
        raise ResultError(f"{folder} holds no finished model; train it first with sinklens lab train induction.")
    try:
        return InductionSettings(**saved)
    except TypeError as error:
        raise ResultError(f"The settings in {folder}/recipe.json are those of another version: {error}.") from error


def _of_a_head(name: str) -> bool:
    return name[0] == "L" and name[1].isdigit()
