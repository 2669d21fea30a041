"""Train a decoder with any attention variant."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from sinklens.lab.checkpoint import Checkpoint
from sinklens.lab.folders import refuse_other
from sinklens.lab.running import deterministic, finite, move
from sinklens.lab.streams import stream
from sinklens.lab.variants.decoder import Decoder
from sinklens.lab.variants.settings import VariantSettings

DRAWN_STEPS = 50
"""Steps whose sequences are drawn at once, which is three times as fast as one step at a time."""


def build_decoder(settings: VariantSettings) -> Decoder:
    """Return the untrained decoder; torch's global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Decoder(settings.decoder)


def train_decoder(
    settings: VariantSettings,
    *,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    checkpoint_every: int = 200,
    report: Callable[[int, float], None] | None = None,
) -> tuple[Decoder, float]:
    """Train, going on from ``checkpoint`` if there is one.

    The loss is the mean cross-entropy over the queries that the task scores; with a prefix, over those from which the
    target cannot be seen. Data are drawn on the CPU, alike for all devices.

    Args:
        settings: what to train.
        device: where.
        checkpoint: file to keep the state in; none is written if None.
        checkpoint_every: steps between two of them.
        report: called every tenth step with the steps done and the loss.

    Returns:
        The decoder on ``device``, in evaluation mode, and the seconds that all steps took.

    Raises:
        InputError: if the loss stops being finite.
        ResultError: if the checkpoint has other settings or is damaged, or cannot be written.

    Cost: 22 ms a step on one CPU thread for one layer of width 64 and 64 sequences of 64 tokens.
    """
    model = build_decoder(settings)
    place = torch.device(device)
    move(model, place)
    optimizer = _optimizer(settings, model)
    done, seconds = 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        state = Checkpoint.load(checkpoint)
        refuse_other(settings.to_dict(), state.settings, f"The checkpoint {checkpoint} belongs to a training")
        model.load_state_dict(state.model)
        optimizer.load_state_dict(state.optimizer)
        done, seconds = state.step, state.seconds
    begin = time.monotonic() - seconds
    with deterministic():
        for step, ids in _batches(settings, done):
            loss = scored_loss(model, settings, ids.to(place))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            last = step + 1 == settings.steps
            save = checkpoint is not None and (last or (step + 1) % checkpoint_every == 0)
            if save or last or (step + 1) % 10 == 0:
                value = finite(loss.item(), step, settings.lr)
                if report is not None:
                    report(step + 1, value)
            if save and checkpoint is not None:
                now = time.monotonic() - begin
                weights = model.state_dict()
                Checkpoint(settings.to_dict(), step + 1, now, weights, optimizer.state_dict()).save(checkpoint)
    return model.eval(), time.monotonic() - begin


def scored_loss(model: Decoder, settings: VariantSettings, ids: Int[Tensor, "batch pos_plus_1"]) -> Tensor:
    """Return the mean loss over the queries that carry one."""
    logits = model(ids[:, :-1])
    scored = torch.stack([*settings.data.classes(ids).values()]).any(0)
    scored[:, : max(0, settings.prefix - 1)] = False
    if bool(scored.all()):
        return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    return cross_entropy(logits[scored], ids[:, 1:][scored])


def _batches(settings: VariantSettings, done: int) -> Iterator[tuple[int, Tensor]]:
    task = settings.data
    # A model reads seq_len tokens and is scored on the next, so one more is drawn; a needle's end is fixed.
    length = settings.seq_len + 1 if settings.task == "backcopy" else settings.seq_len
    for first in range(done - done % DRAWN_STEPS, settings.steps, DRAWN_STEPS):
        drawn = task.sample(settings.batch * DRAWN_STEPS, length, stream(settings.seed, "train", first))
        for step, ids in enumerate(drawn.split(settings.batch), first):
            if done <= step < settings.steps:
                yield step, ids


def _optimizer(settings: VariantSettings, model: Decoder) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=0.9)
    return torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.99), eps=1e-8, weight_decay=1e-4, fused=True
    )
