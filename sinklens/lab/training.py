"""Train a Bigram-Backcopy model, and go on where an interrupted training stopped."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import OPTForCausalLM

from sinklens.errors import InputError, ResultError
from sinklens.lab.architecture import build_model
from sinklens.lab.checkpoint import Checkpoint
from sinklens.lab.gates import measure
from sinklens.lab.publish import publish, read_recipe
from sinklens.lab.settings import BackcopySettings
from sinklens.lab.streams import stream


def train_bb(
    layers: int,
    out: str | Path,
    *,
    d_model: int = 64,
    seq_len: int = 64,
    batch: int = 64,
    steps: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    optimizer: str = "adamw",
    device: str = "auto",
    checkpoint_every: int = 200,
    resume: bool = True,
    progress: bool = True,
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
        d_model: width; the MLP is four times as wide.
        seq_len: positions of a sequence, and the model's context.
        batch: sequences per step.
        steps: optimiser steps; 2,000 for one layer and 4,000 for more if None.
        lr: constant learning rate; by layers and optimiser if None, see `BackcopySettings.choose`.
        seed: of the initial weights and of the data.
        optimizer: "adamw" or "sgd".
        device: "auto" (CUDA if there is one), "cpu" or "cuda". The data is drawn on the CPU, alike for all
            devices.
        checkpoint_every: steps between two checkpoints.
        resume: go on from a checkpoint, and leave a finished training; if False, start anew and replace both.
        progress: draw a progress bar on standard error.

    Returns:
        The folder.

    Raises:
        InputError: if a setting is out of range, there is no CUDA for `device="cuda"`, `out` holds something
            else, or the loss stops being finite.
        ResultError: if the checkpoint or the finished model in `out` has other settings or is damaged, or the
            folder cannot be written.
    """
    settings = BackcopySettings.choose(
        layers,
        d_model=d_model,
        seq_len=seq_len,
        batch=batch,
        steps=steps,
        lr=lr,
        seed=seed,
        optimizer=optimizer,
    )
    if checkpoint_every < 1:
        raise InputError(f"checkpoint_every must be at least 1 step, not {checkpoint_every}.")
    target, place = Path(out), choose_device(device)
    _refuse_foreign(target)
    checkpoint = target / "checkpoint" / "state.pt"
    recipe = read_recipe(target)
    if not resume:
        _forget(checkpoint)
        if recipe is not None:
            # If this run is interrupted early, the empty folder tells that the old files are ours.
            checkpoint.parent.mkdir(exist_ok=True)
            (target / "recipe.json").unlink()
    elif recipe is not None:
        _refuse_other(settings, recipe, f"{target} holds a finished model")
        if not (target / "model.safetensors").exists():
            raise ResultError(f"{target} has lost its model.safetensors; start anew with resume=False (--no-resume).")
        _forget(checkpoint)
        return target
    model, seconds = train(settings, checkpoint, place, checkpoint_every, progress)
    _move(model, torch.device("cpu"))
    measured = measure(model, settings.task, initial=build_model(settings))
    publish(target, model, settings, measured, seconds=seconds, device=place.type)
    _forget(checkpoint)
    return target


def train(
    settings: BackcopySettings,
    checkpoint: Path,
    device: torch.device,
    checkpoint_every: int,
    progress: bool = False,
) -> tuple[OPTForCausalLM, float]:
    """Run the steps that are left, and return the model and the seconds that all steps took.

    Step `n` trains on sequences drawn from a stream addressed by the seed and `n`, so a checkpoint needs no
    state of a generator. The loss is the mean cross-entropy over all positions, bigram and backcopy alike.

    Raises:
        InputError: if the loss stops being finite.
        ResultError: if the checkpoint has other settings or is damaged, or cannot be written.
    """
    model = build_model(settings)
    _move(model, device)
    optimizer = _optimizer(settings, model)
    done, seconds = 0, 0.0
    if checkpoint.exists():
        state = Checkpoint.load(checkpoint)
        _refuse_other(settings, state.settings, f"The checkpoint {checkpoint} belongs to a training")
        model.load_state_dict(state.model)
        optimizer.load_state_dict(state.optimizer)
        done, seconds = state.step, state.seconds
    begin = time.monotonic() - seconds
    task = settings.task
    with _deterministic(), _progress_bar(settings, done, progress) as report:
        for step in range(done, settings.steps):
            generator = stream(settings.seed, "train", step)
            ids = task.sample(settings.batch, settings.seq_len + 1, generator).to(device)
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            save = step + 1 == settings.steps or (step + 1) % checkpoint_every == 0
            if save or (step + 1) % 10 == 0:
                report(step + 1, _finite(loss.item(), step, settings))
            if save:
                now = time.monotonic() - begin
                state = Checkpoint(settings.to_dict(), step + 1, now, model.state_dict(), optimizer.state_dict())
                state.save(checkpoint)
    return model.eval(), time.monotonic() - begin


def choose_device(name: str) -> torch.device:
    """Turn "auto", "cpu" or "cuda" into a device.

    Raises:
        InputError: for another name, or for "cuda" on a machine without it.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"The device must be auto, cpu or cuda, not {name!r}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("The device cuda was asked for, but torch finds no CUDA here; use --device cpu or auto.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _move(model: torch.nn.Module, device: torch.device) -> None:
    # Typed as a plain module: Hugging Face wraps `to` in a way that type checkers misread.
    model.to(device)


def _optimizer(settings: BackcopySettings, model: OPTForCausalLM) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), eps=1e-8, weight_decay=1e-4)


def _finite(loss: float, step: int, settings: BackcopySettings) -> float:
    if loss - loss != 0:
        raise InputError(f"The loss is {loss} at step {step}: the learning rate {settings.lr:g} is too large here.")
    return loss


def _refuse_foreign(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; a folder for the model was expected.")
    if not target.is_dir() or (target / "recipe.json").exists():  # `read_recipe` refuses a strange recipe
        return
    checkpoint, strangers = target / "checkpoint", sorted(path.name for path in target.iterdir())
    ours = checkpoint.is_dir() and {path.name for path in checkpoint.iterdir()} <= {
        "state.pt",
        ".state.pt.tmp",
    }
    if strangers and not ours:
        raise InputError(f"{target} already holds {strangers[0]}; give a new or an empty folder for the model.")


def _forget(checkpoint: Path) -> None:
    """Delete a checkpoint and its folder, but nothing else that might lie there."""
    for path in (checkpoint, checkpoint.with_name(f".{checkpoint.name}.tmp")):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        checkpoint.parent.rmdir()


def _refuse_other(settings: BackcopySettings, saved: dict[str, object], what: str) -> None:
    differences = settings.differences(saved)
    if differences:
        raise ResultError(
            f"{what} with other settings: {', '.join(differences)}; repeat those settings, "
            "choose another folder, or start anew with resume=False (--no-resume)."
        )


@contextmanager
def _deterministic() -> Iterator[None]:
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextmanager
def _progress_bar(settings: BackcopySettings, done: int, shown: bool) -> Iterator[Callable[[int, float], None]]:
    if not shown:
        yield lambda step, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(f"training bb-{settings.layers}l", total=settings.steps, completed=done, loss="-")
        yield lambda step, loss: bar.update(task, completed=step, loss=f"{loss:.3f}")
