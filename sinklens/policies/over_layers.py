"""What two rules settle over all layers, and no layer can know before the last: measured on the prompt beforehand."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, ReceivedMass, plan_for
from sinklens.errors import InputError
from sinklens.policies.composed import LayerMap
from sinklens.policies.d2o import D2O
from sinklens.policies.squeezed import Squeezed
from sinklens.policies.view import View


@torch.no_grad()
def squeezed_threshold(
    model: TransformerBridge, prompt: Int[Tensor, "1 pos"], rule: Squeezed | None = None
) -> Squeezed:
    """Squeezed Attention with the paper's one threshold: the quantile of its scores over all layers and heads.

    Args:
        model: The bridge.
        prompt: Ids of the fixed prompt, without padding. Cost: one forward pass.
        rule: Its other fields; default: the paper's.

    Raises:
        InputError: A prompt of no more tokens than vote, or several.
    """
    rule = rule or Squeezed()
    if prompt.shape[0] != 1 or prompt.shape[1] <= rule.voters:
        raise InputError(f"Expected one prompt of more than {rule.voters} tokens, got {tuple(prompt.shape)}.")
    gather = _Votes(1.0, rule.per_cluster, rule.voters, prompt=prompt.shape[1])
    with gather(model):
        model(prompt)
    return replace(rule, threshold=rule.cut(torch.cat(gather.found)))


@torch.no_grad()
def d2o_budgets(
    model: TransformerBridge, prompt: Int[Tensor, "1 pos"], *, heavy: float = 0.1, recent: float = 0.1
) -> LayerMap:
    """D2O with the paper's budgets by layer: ``softmax_l(-v_l) L`` times a share of the prompt, from .01 to 1 of it.

    ``v_l`` is the variance over keys of the attention that they got from all rows, brought to 0..1 over the layer's
    heads and averaged over them: a layer whose heads spread their attention alike gets more. The first two and the last
    layer read everything.

    Args:
        model: The bridge.
        prompt: Ids of the prompt, without padding. Cost: one forward pass.
        heavy: Heavy hitters of a mean layer, as a share of the prompt.
        recent: Recent tokens of a mean layer.

    Raises:
        InputError: Several prompts, or shares that are none.

    Source: Wan et al. 2024, arXiv 2406.13035, with the normalisation of AIoT-MLSys-Lab/D2O.
    """
    if prompt.shape[0] != 1 or not (0 < heavy <= 1 and 0 < recent <= 1):
        raise InputError(f"Expected one prompt and shares up to 1, got {tuple(prompt.shape)}, {heavy} and {recent}.")
    sums: dict[int, Tensor] = {}
    with AttentionEngine(
        model,
        path=plan_for(model).path,
        statistics=[ReceivedMass],
        on_layer=lambda layer, _, found: sums.update({layer: found[0].compute()["mass"][0]}),
    ):
        model(prompt)
    layers = sorted(sums)
    variance = torch.stack([_normalised(sums[layer].var(-1)) for layer in layers])
    ratio = torch.softmax(-variance, 0) * len(layers)
    size = [[max(1, int(prompt.shape[1] * min(max(float(r) * x, 0.01), 1))) for x in (heavy, recent)] for r in ratio]
    return LayerMap({layer: D2O(*own) for layer, own in zip(layers, size, strict=True)})


def _normalised(variance: Tensor) -> Tensor:
    low, high = variance.min(), variance.max()
    return ((variance - low) / (high - low + 1e-6)).mean()


@dataclass(frozen=True)
class _Votes(Squeezed):
    """Reads everything, and gathers the votes of each layer."""

    found: list[Tensor] = field(default_factory=list, compare=False, kw_only=True)
    name: ClassVar[str] = ""

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Everything."""
        super().keep(view)  # notes the queries of the voters
        if bool((view.rows == (view.prompt or 0) - 1).any()):
            self.found.append(self.votes(view))
        return view.visible
