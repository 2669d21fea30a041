"""Gates learned by gradient: every step compares the gated model with the unchanged one on fresh passkeys."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine
from sinklens.errors import UnsupportedArchitectureError
from sinklens.interventions.kv_groups import kv_head_count
from sinklens.models.architecture import attention_layers
from sinklens.studies.streaming_split.gated import GatedEngine, HeadOutputs, KeepOutputs, frozen
from sinklens.studies.streaming_split.passkeys import Passkeys, draw_passkeys
from sinklens.studies.streaming_split.settings import GateSettings


@dataclass
class Learner:
    """Gates on their way, and all that the next step needs.

    Args:
        model: The bridge, on the fast path.
        settings: Resolved settings.
        vocabulary: Ordinary token ids.
        bos_id: Stands first in every text, if there is one.

    Attributes:
        gates: alpha ``[attention_layer kv_head]``.
        optimiser: AdamW on the gates alone.
        losses: One row per step done.
    """

    model: TransformerBridge
    settings: GateSettings
    vocabulary: Int[Tensor, " token"]
    bos_id: int | None
    losses: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layers = sorted(attention_layers(self.model))
        device = next(self.model.parameters()).device
        self.gates = torch.ones(len(self.layers), kv_head_count(self.model), device=device, requires_grad=True)
        self.optimiser = torch.optim.AdamW([self.gates], lr=self.settings.lr, weight_decay=0.0)

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.losses)

    def advance(self) -> None:
        """One step: clamp the gates to [0, 1], draw texts, compare, follow the gradient."""
        settings, step = self.settings, self.step
        with torch.no_grad():
            self.gates.clamp_(0, 1)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate(step)
        drawn = self.draw(step)
        with torch.enable_grad(), frozen(self.model):
            distillation = self._distil(drawn)
            regulariser = self.gates.abs().mean() if settings.regulariser == "mean" else self.gates.abs().sum()
            loss = distillation + settings.reg_weight * regulariser
            self.optimiser.zero_grad()
            loss.backward()
        self.losses.append(
            {
                "step": step,
                "loss": float(loss.detach()),
                "distillation": float(distillation.detach()),
                "regulariser": float(regulariser.detach()),
                "lr": settings.rate(step),
                "length": drawn.ids.shape[1],
                "mean_gate": float(self.gates.detach().mean()),
            }
        )
        self.optimiser.step()

    def draw(self, step: int) -> Passkeys:
        """The texts of a step; they follow from the seed and the step alone, so that a resumed run draws the same."""
        settings = self.settings
        generator = stream(settings.seed, step)
        lengths = settings.text_lengths()
        return draw_passkeys(
            self.vocabulary,
            length=lengths[int(torch.randint(len(lengths), (1,), generator=generator))],
            passkeys=int(settings.passkeys or 1),
            value_len=settings.value_len,
            batch=settings.batch,
            generator=generator,
            bos_id=self.bos_id,
            depths=settings.depths,
        )

    def _distil(self, drawn: Passkeys) -> Float[Tensor, ""]:
        settings = self.settings
        ids = drawn.ids.to(self.gates.device)
        rows = drawn.answers | drawn.questions if settings.labels == "questions_and_answers" else drawn.answers
        with torch.no_grad():
            full = KeepOutputs()
            wanted = last_hidden(self.model, ids, rows, AttentionEngine(self.model, observers=[full], edited=()))
        teacher: HeadOutputs | None = full.z if settings.full_outputs == "teacher" else None
        gates = dict(zip(self.layers, self.gates, strict=True))
        gated = GatedEngine(self.model, gates, int(settings.sinks or 0), int(settings.recent or 1), teacher)
        squares = (last_hidden(self.model, ids, rows, gated) - wanted).square()
        return squares.mean() if settings.distillation == "mean" else squares.sum() / len(ids)


def last_hidden(
    model: TransformerBridge, ids: Int[Tensor, "batch pos"], rows: Bool[Tensor, "batch pos"], engine: Any
) -> Float[Tensor, "row d_model"]:
    """Hidden states after the final norm at some rows, in fp32, under an engine; logits are not computed."""
    kept: list[Tensor] = []

    def keep(hidden: Tensor, hook: Any) -> None:
        kept.append(hidden[rows.to(hidden.device)].float())

    with engine, model.hooks(fwd_hooks=[("ln_final.hook_out", keep)]):
        model(ids, **_without_logits(model))
    if len(kept) != 1:
        raise UnsupportedArchitectureError(
            f"Expected one final norm (ln_final) in {model.cfg.architecture}, its hook fired {len(kept)} times."
        )
    return kept[0]


def _without_logits(model: TransformerBridge) -> dict[str, Any]:
    accepted = inspect.signature(type(model.original_model).forward).parameters
    wanted = {"use_cache": False, "logits_to_keep": 1}
    return {name: value for name, value in wanted.items() if name in accepted}


def stream(seed: int, *place: int) -> torch.Generator:
    """A generator for one place of a run, such as a step.

    torch's CPU generator looks at no more than 32 bits of a seed, so seed and place are hashed into that many.

    >>> first, second = stream(0, 7), stream(1, 7)
    >>> first.initial_seed() == stream(0, 7).initial_seed(), first.initial_seed() == second.initial_seed()
    (True, False)
    """
    (state,) = np.random.SeedSequence([seed, *place]).generate_state(1)
    return torch.Generator().manual_seed(int(state))
