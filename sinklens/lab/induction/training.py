"""The loss of an induction training, and its steps."""

import math
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from sinklens.lab.induction.model import build_model
from sinklens.lab.induction.settings import InductionSettings
from sinklens.lab.loop import run_steps
from sinklens.lab.optimizer import CLIP, adamw
from sinklens.lab.running import move
from sinklens.lab.streams import stream
from sinklens.lab.tasks.word_task import after_repeat
from sinklens.results.progress import SILENT, Progress


def train(
    settings: InductionSettings,
    checkpoint: Path,
    device: torch.device,
    checkpoint_every: int,
    progress: Progress = SILENT,
) -> tuple[LlamaForCausalLM, float]:
    """Run the steps that are left; return the model and the seconds that all steps took.

    Raises:
        InputError: if the loss stops being finite.
        ResultError: if the checkpoint has other settings or is damaged, or cannot be written.
    """
    model = build_model(settings)
    move(model, device)

    def loss_of(step: int) -> Tensor:
        generator = stream(settings.seed, "train", step)
        return mixture_loss(model, sequences(settings, step, generator).to(device), settings.new_weight)

    seconds = run_steps(
        model,
        adamw(model, settings.lr, settings.weight_decay),
        loss_of,
        settings=settings.to_dict(),
        steps=settings.steps,
        lr=settings.lr,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        rate=settings.rate,
        clip=CLIP,
    )
    return model.eval(), seconds


def sequences(settings: InductionSettings, step: int, generator: torch.Generator) -> Int[Tensor, "batch pos"]:
    """Draw one step's sequences: needles first, then as many repeated spans, all of one length."""
    low, high = math.log(settings.shortest), math.log(settings.longest_at(step))
    length = round(math.exp(low + float(torch.rand(1, generator=generator)) * (high - low)))
    half = max(1, settings.tokens // length // 2)
    parts = [task.sample(half, length, generator) for task in (settings.needle, settings.spans)]
    return torch.cat(parts)


def mixture_loss(model: LlamaForCausalLM, ids: Int[Tensor, "batch pos"], new_weight: float) -> Tensor:
    """Mean cross-entropy where the next token follows from an earlier one, plus `new_weight` times that elsewhere."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    certain, targets = after_repeat(ids)[:, :-1], ids[:, 1:]
    loss = cross_entropy(logits[certain], targets[certain])
    return loss + new_weight * cross_entropy(logits[~certain], targets[~certain]) if new_weight else loss
