"""What every training of the lab needs while it runs: a device, repeatable arithmetic, an end that says what stays."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import typer

from sinklens.errors import InputError
from sinklens.results.show_progress import ShowProgress


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


def move(model: torch.nn.Module, device: torch.device) -> None:
    """Move a model in place; typed as a plain module, because type checkers misread Hugging Face's `to`."""
    model.to(device)


def finite(loss: float, step: int, lr: float) -> float:
    """Return the loss, or stop the training.

    Raises:
        InputError: if it is NaN or infinite.
    """
    if loss - loss != 0:
        raise InputError(f"The loss is {loss} at step {step}: the learning rate {lr:g} is too large here.")
    return loss


@contextmanager
def deterministic() -> Iterator[None]:
    """Ask torch for repeatable kernels (a warning where there is none), and leave its setting as it was."""
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
def zeroed(module: torch.nn.Module) -> Iterator[None]:
    """Let a module return zeros, shapes kept."""
    handle = module.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def shown(out: Path) -> Iterator[ShowProgress]:
    """Progress of a command on standard error; an interruption ends in a sentence."""
    try:
        with ShowProgress() as progress:
            yield progress
    except KeyboardInterrupt:
        typer.echo(f"Interrupted; the same command goes on from the last checkpoint in {out}.", err=True)
        raise typer.Exit(130) from None
