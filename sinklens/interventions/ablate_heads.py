"""AblateHeads: heads silenced, made uniform, or held at their mean output."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, AttentionShape, Block, plan_for
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions.base import Intervention
from sinklens.interventions.heads import (
    Heads,
    head_name,
    heads_in_block,
    heads_in_layer,
    parse_head,
    parse_heads,
)
from sinklens.interventions.positions import Positions
from sinklens.models.architecture import attention_layers
from sinklens.models.tokens import TokenBatch

HOW = ("zero", "uniform", "mean")


@dataclass(frozen=True)
class AblateHeads(Intervention):
    """Takes away what heads do, in one of three ways that differ.

    - ``"zero"``: the head's output ``z = pattern @ value`` is 0, so it adds nothing to the residual stream (biases of
      ``W_O`` stay).
    - ``"uniform"``: the head attends equally to all keys it may see (those that an earlier part of a composition hid
      are left out) and hands on the plain average of their values. Rows sum to 1, also with a learned sink logit.
      Papers on retrieval heads call this masking a head.
    - ``"mean"``: at every position z is the head's mean output over a reference text, from :func:`mean_outputs`.

    z is taken before any output gate. Compare with as many random heads of the same layers before believing an effect.

    Args:
        heads: Heads such as ``["L5H1", (5, 2)]``, or ``"all"``.
        how: ``"zero"``, ``"uniform"`` or ``"mean"``.
        means: For ``"mean"``: output vector by head name; must hold every ablated head.
    """

    heads: Heads
    how: Literal["zero", "uniform", "mean"] = "zero"
    means: Mapping[str, Sequence[float]] | None = field(default=None, repr=False, hash=False)

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise InputError(f'how must be "zero", "uniform" or "mean", got {self.how!r}.')
        if (self.how == "mean") != (self.means is not None):
            raise InputError('how="mean" needs means=mean_outputs(model, batch), and no other way takes means.')
        object.__setattr__(self, "heads", parse_heads(self.heads))
        if self.means is not None:
            object.__setattr__(self, "means", _parse_means(self.means))

    def check(self, model: TransformerBridge) -> None:
        """The model has these heads, and for ``"mean"`` each has its mean."""
        super().check(model)
        if self.means is None:
            return
        every = [(layer, head) for layer in attention_layers(model) for head in range(model.cfg.n_heads)]
        for head in every if isinstance(self.heads, str) else self.heads:
            if head_name(head) not in self.means:
                raise InputError(f"means has no output of {head_name(head)}; take it from mean_outputs(model, batch).")

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of attention or of head outputs."""
        if self.how == "uniform":
            return [_Uniform(self.heads)]
        return [_Replace(self.heads, self.means)]


class _Uniform:
    def __init__(self, heads: Heads) -> None:
        self.heads = heads

    def edit_scores(self, block: Block) -> None:
        heads = heads_in_block(self.heads, block)
        if heads != []:
            scores = block.scores[heads]
            block.scores[heads] = torch.where(scores == -math.inf, scores, 0)

    def edit_pattern(self, block: Block) -> None:
        # a learned sink logit has taken its share of the row
        heads = heads_in_block(self.heads, block)
        if heads != []:
            pattern = block.pattern[heads]
            block.pattern[heads] = pattern / pattern.sum(-1, keepdim=True).clamp(min=1e-30)


class _Replace:
    def __init__(self, heads: Heads, means: Mapping[str, Sequence[float]] | None) -> None:
        self.heads, self.means = heads, means

    def edit_output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        for head in heads_in_layer(self.heads, shape):
            name = head_name((shape.layer, head))
            if self.means is None:
                output[:, head] = 0
                continue
            mean = torch.tensor(self.means[name], dtype=output.dtype, device=output.device)
            if mean.shape != output.shape[-1:]:
                raise InputError(f"The mean of {name} has {len(mean)} numbers, its output has {output.shape[-1]}.")
            output[:, head] = mean[None, None]


@torch.no_grad()
def mean_outputs(model: TransformerBridge, batch: TokenBatch) -> dict[str, list[float]]:
    """Mean output z of every head over all real tokens of a reference text, by head name.

    Every real token counts once, position 0 included; summed in fp64.

    Args:
        model: The bridge.
        batch: Reference tokens from :func:`sinklens.tokenize`; passed through together.

    Raises:
        UnsupportedArchitectureError: The model has no attention, or its head outputs cannot be read exactly.

    Cost: one forward pass.
    """
    means: dict[str, list[float]] = {}
    path = plan_for(model).path
    if path == "none":
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention heads to take the mean of.")
    collect: Any = _Collect(batch.real, means)
    with AttentionEngine(model, path=path, edits=[collect]):
        device = next(model.parameters()).device
        # right padding needs no attention mask: real queries never see what comes after them
        model(batch.ids.to(device), return_type=None)
    return means


class _Collect:
    def __init__(self, real: Bool[Tensor, "batch pos"], means: dict[str, list[float]]) -> None:
        self.real, self.means = real, means

    def edit_output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        by_token = output.transpose(1, 2)[self.real.to(output.device)]  # [token head d_value]
        for head, mean in enumerate(by_token.double().mean(0).tolist()):
            self.means[head_name((shape.layer, head))] = mean


def _parse_means(means: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    try:
        found = {head_name(parse_head(name)): [float(x) for x in mean] for name, mean in means.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f'means must map names such as "L5H1" to lists of numbers ({error}).') from None
    for name, mean in found.items():
        if not all(math.isfinite(x) for x in mean):
            raise InputError(f"The mean of {name} holds a number that is not finite; take it from another text.")
    return found
