"""What every training of the lab needs while it runs: a device, repeatable arithmetic, a progress bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from sinklens.errors import InputError


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


def duration(seconds: float) -> str:
    """Say a time span in words.

    Example:
        >>> duration(90), duration(600)
        ('90 s', '10 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


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
def progress_bar(name: str, steps: int, done: int, shown: bool) -> Iterator[Callable[..., None]]:
    """Draw steps, loss and time left on standard error.

    Yields:
        A function of the steps done, the loss, and optionally a line of text that stays above the bar. Where
        standard error is no terminal, the lines are all that appears.
    """
    if not shown:
        yield lambda step, loss, line=None: None
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
        task = bar.add_task(f"training {name}", total=steps, completed=done, loss="-")

        def report(step: int, loss: float, line: str | None = None) -> None:
            bar.update(task, completed=step, loss=f"{loss:.3f}")
            if line is not None:
                bar.console.print(line, soft_wrap=True, markup=False, highlight=False)

        yield report
