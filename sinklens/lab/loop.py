"""The steps of a training: on from a checkpoint if there is one, and one written every so often."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sinklens.lab.checkpoint import Checkpoint
from sinklens.lab.folders import refuse_other
from sinklens.lab.running import deterministic, finite
from sinklens.results.progress import SILENT, Progress


def run_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[int], Tensor],
    *,
    settings: Mapping[str, Any],
    steps: int,
    lr: float,
    checkpoint: Path | None,
    checkpoint_every: int,
    progress: Progress = SILENT,
    rate: Callable[[int], float] | None = None,
    clip: float | None = None,
) -> float:
    """Run the optimiser steps that are left and return the seconds that all steps took.

    The data of step ``n`` must follow from ``n`` alone (a stream addressed by the seed and ``n``): then a training that
    was killed and goes on from its checkpoint ends with the same weights as one that was not.

    Args:
        model: what is trained, on its device; its state is replaced by the checkpoint's.
        optimizer: over the model's parameters.
        loss_of: the loss of one step, a graph to go back through.
        settings: everything that decides about the weights, as JSON; kept in the checkpoint and compared with it.
        steps: optimiser steps in all.
        lr: the learning rate, to be named when the loss stops being finite.
        checkpoint: the file of the state; none is read or written if None.
        checkpoint_every: steps between two of them.
        progress: told of every step, and of the loss at every tenth.
        rate: learning rate of a step; the optimiser's own throughout if None.
        clip: norm to which gradients are clipped; none if None.

    Raises:
        InputError: if the loss stops being finite.
        ResultError: if the checkpoint has other settings or is damaged, or cannot be written.
    """
    done, seconds = 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        state = Checkpoint.load(checkpoint)
        refuse_other(settings, state.settings, f"The checkpoint {checkpoint} belongs to a training")
        model.load_state_dict(state.model)
        optimizer.load_state_dict(state.optimizer)
        done, seconds = state.step, state.seconds
    begin = time.monotonic() - seconds
    progress.begin("Training", steps)
    progress.skip(done)
    with deterministic():
        for step in range(done, steps):
            loss = loss_of(step)
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            if rate is not None:
                for group in optimizer.param_groups:
                    group["lr"] = rate(step)
            optimizer.step()
            now = step + 1
            save, told = now == steps or now % checkpoint_every == 0, ""
            if save or now % 10 == 0:
                told = f"loss {finite(loss.item(), step, lr):.3f}"
            progress.advance(1.0, told)
            if save and checkpoint is not None:
                spent = time.monotonic() - begin
                Checkpoint(dict(settings), now, spent, model.state_dict(), optimizer.state_dict()).save(checkpoint)
    return time.monotonic() - begin
