"""The loss of an induction training, and its steps."""

import math
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from sinklens.lab.induction.settings import LAYERS, InductionSettings
from sinklens.lab.loop import run_steps
from sinklens.lab.optimizer import CLIP, adamw
from sinklens.lab.running import move
from sinklens.lab.streams import stream
from sinklens.lab.tasks.word_task import after_repeat
from sinklens.results.progress import SILENT, Progress


def build_model(settings: InductionSettings) -> LlamaForCausalLM:
    """Build the model; its weights follow from `settings.seed` alone.

    Two layers of attention with RoPE, RMSNorm and an untied head. The MLPs are there, of width 1, because a Llama has
    them, but their weights are 0 and are not trained: they add exactly 0, and the model is attention-only in effect.
    The initialisation is Hugging Face's, N(0, 0.02). Torch's global random state is left as it was.
    """
    config = LlamaConfig(
        vocab_size=settings.n_words + 1,
        hidden_size=settings.d_model,
        intermediate_size=1,
        num_hidden_layers=LAYERS,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=settings.longest,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_base},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=settings.n_words,
        eos_token_id=None,
        pad_token_id=None,
        architectures=["LlamaForCausalLM"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        for parameter in (*layer.mlp.parameters(), layer.post_attention_layernorm.weight):
            parameter.requires_grad_(False)
        for parameter in layer.mlp.parameters():
            torch.nn.init.zeros_(parameter)
    return model


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
