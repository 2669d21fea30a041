"""A trained decoder as a folder: weights, settings and figures, written whole and read back."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_bytes

from sinklens.errors import ResultError
from sinklens.lab.folders import FORMAT, STATE, forget, how_it_ran, json_bytes, measured_bytes, read_recipe, work_in
from sinklens.lab.running import move
from sinklens.lab.tasks import Backcopy
from sinklens.lab.variants.capture import reading_of
from sinklens.lab.variants.decoder import Decoder
from sinklens.lab.variants.measure import measure_decoder
from sinklens.lab.variants.settings import VariantSettings
from sinklens.lab.variants.training import build_decoder, train_decoder
from sinklens.results.files import write_atomically
from sinklens.results.progress import SILENT, Progress

TASK = "attention-variant"


def train_variant(
    out: str | Path,
    settings: VariantSettings,
    *,
    device: str = "auto",
    checkpoint_every: int = 200,
    resume: bool = True,
    progress: Progress = SILENT,
) -> Path:
    """Train a decoder with an attention variant and write it to a folder.

    ``out`` receives model.safetensors, recipe.json and, for the backcopy task, measured.json. Killed at any moment,
    the same call goes on from the last checkpoint and ends with the same weights. A finished folder with the same
    settings is left as it is.

    Args:
        out: target folder; new, empty, or one that this function wrote to before.
        settings: what to train.
        device: "auto", "cpu" or "cuda".
        checkpoint_every: steps between two checkpoints.
        resume: go on from a checkpoint and leave a finished training; if False, start anew and replace both.
        progress: told how it goes on.

    Returns:
        The folder.

    Raises:
        InputError: if a setting is out of range, ``out`` holds something else, or the loss stops being finite.
        ResultError: if the checkpoint or the finished model has other settings or is damaged, or cannot be written.
    """
    target, place, finished = work_in(
        out, TASK, settings.to_dict(), device=device, checkpoint_every=checkpoint_every, resume=resume
    )
    if finished:
        return target
    model, seconds = train_decoder(
        settings, device=place, checkpoint=target / STATE, checkpoint_every=checkpoint_every, progress=progress
    )
    move(model, torch.device("cpu"))
    weights = {name: weight.detach().float().contiguous() for name, weight in model.state_dict().items()}
    write_atomically(target / "model.safetensors", safetensors_bytes(weights))
    task = settings.data
    if isinstance(task, Backcopy):
        measured = measure_decoder(model, task, initial=build_decoder(settings).eval())
        write_atomically(target / "measured.json", measured_bytes(measured))
    recipe: dict[str, Any] = {
        "format": FORMAT,
        "task": TASK,
        "settings": settings.to_dict(),
        "attention_is_read_as": reading_of(settings.attention),
        "parameters": sum(weight.numel() for weight in weights.values()),
        **how_it_ran(seconds, place.type),
    }
    write_atomically(target / "recipe.json", json_bytes(recipe))
    forget(target)
    return target


def load_variant(folder: str | Path) -> tuple[Decoder, VariantSettings]:
    """Read a decoder that :func:`train_variant` wrote, in evaluation mode, and its settings.

    Raises:
        ResultError: if the folder holds no finished one or is damaged.
    """
    place = Path(folder)
    saved = read_recipe(place, TASK)
    if saved is None:
        raise ResultError(f"{place} holds no trained variant; write one with sinklens lab train variant --out {place}.")
    try:
        settings = VariantSettings(**saved)
        model = build_decoder(settings)
        model.load_state_dict(safetensors_load((place / "model.safetensors").read_bytes()))
    except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ResultError(f"The variant in {place} is damaged ({type(error).__name__}); train it again.") from error
    return model.eval(), settings
