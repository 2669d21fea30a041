"""Train a Bigram-Backcopy model, and go on where an interrupted training stopped."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import OPTForCausalLM

from sinklens.lab.architecture import build_model
from sinklens.lab.folders import STATE, forget, work_in
from sinklens.lab.gates import measure
from sinklens.lab.loop import run_steps
from sinklens.lab.publish import TASK, publish
from sinklens.lab.running import move
from sinklens.lab.settings import BackcopySettings
from sinklens.lab.streams import stream
from sinklens.results.progress import SILENT, Progress


def train_bb(
    layers: int,
    out: str | Path,
    *,
    device: str = "auto",
    checkpoint_every: int = 200,
    resume: bool = True,
    progress: Progress = SILENT,
    **settings: Any,
) -> Path:
    """Train a Bigram-Backcopy model and write it as a Hugging Face directory.

    `out` receives config.json, model.safetensors, the tokenizer's files, recipe.json (settings, versions,
    seconds), measured.json (the figures of `gates.measure`) and README.md. On one machine with one number of
    threads, equal settings give equal weights, interrupted or not: killed at any moment, the same call goes
    on from the last checkpoint. A finished folder with the same settings is left as it is.

    Cost: with the default widths and one CPU thread about 25 ms a step for one layer, 60 ms for three.

    Args:
        layers: number of layers, one head each.
        out: the target folder; new, empty, or one that this function wrote to before.
        device: "auto" (CUDA if there is one), "cpu" or "cuda". The data is drawn on the CPU, alike for all
            devices.
        checkpoint_every: steps between two checkpoints.
        resume: go on from a checkpoint, and leave a finished training; if False, start anew and replace both.
        progress: told how it goes on.
        **settings: other fields of `BackcopySettings`; learning rate and steps follow from the layers and the optimiser
            where they are left out or None, see `BackcopySettings.choose`.

    Returns:
        The folder.

    Raises:
        InputError: if a setting is out of range, there is no CUDA for `device="cuda"`, `out` holds something
            else, or the loss stops being finite.
        ResultError: if the checkpoint or the finished model in `out` has other settings or is damaged, or the
            folder cannot be written.
    """
    chosen = BackcopySettings.choose(layers, **settings)
    target, place, finished = work_in(
        out, TASK, chosen.to_dict(), device=device, checkpoint_every=checkpoint_every, resume=resume
    )
    if finished:
        return target
    model, seconds = train(chosen, target / STATE, place, checkpoint_every, progress)
    move(model, torch.device("cpu"))
    measured = measure(model, chosen.task, initial=build_model(chosen))
    publish(target, model, chosen, measured, seconds=seconds, device=place.type)
    forget(target)
    return target


def train(
    settings: BackcopySettings,
    checkpoint: Path,
    device: torch.device,
    checkpoint_every: int,
    progress: Progress = SILENT,
) -> tuple[OPTForCausalLM, float]:
    """Run the steps that are left, and return the model and the seconds that all steps took.

    Step `n` trains on sequences drawn from a stream addressed by the seed and `n`, so a checkpoint needs no
    state of a generator. The loss is the mean cross-entropy over all positions, bigram and backcopy alike.

    Raises:
        InputError: if the loss stops being finite.
        ResultError: if the checkpoint has other settings or is damaged, or cannot be written.
    """
    model = build_model(settings)
    move(model, device)
    task = settings.task

    def loss_of(step: int) -> Tensor:
        ids = task.sample(settings.batch, settings.seq_len + 1, stream(settings.seed, "train", step)).to(device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    seconds = run_steps(
        model,
        _optimizer(settings, model),
        loss_of,
        settings=settings.to_dict(),
        steps=settings.steps,
        lr=settings.lr,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )
    return model.eval(), seconds


def _optimizer(settings: BackcopySettings, model: OPTForCausalLM) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), eps=1e-8, weight_decay=1e-4)
