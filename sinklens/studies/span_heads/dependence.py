"""How much a head's output at the answer changes without a span of the prompt."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, AttentionShape, plan_for
from sinklens.errors import UnsupportedArchitectureError
from sinklens.interventions.heads import Head


class _Last:
    """Observer that keeps every head's output in the last row."""

    def __init__(self) -> None:
        self.by_layer: dict[int, Tensor] = {}

    def observe_output(self, shape: AttentionShape, output: Tensor) -> None:
        self.by_layer[shape.layer] = output[0, :, -1].double().cpu()


def last_outputs(model: TransformerBridge, ids: list[int]) -> dict[int, Float[Tensor, "head d_value"]]:
    """Output z of every head at the last token of a prompt, before W_O, by layer."""
    path = plan_for(model).path
    if path == "none":
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention heads.")
    last: Any = _Last()
    with torch.no_grad(), AttentionEngine(model, path=path, observers=[last]):
        model(torch.tensor([ids], device=next(model.parameters()).device), return_type=None)
    found: dict[int, Tensor] = last.by_layer
    return found


def dependence(
    whole: dict[int, Float[Tensor, "head d_value"]], without: dict[int, Float[Tensor, "head d_value"]]
) -> dict[Head, float]:
    """``|z(with the span) - z(without)|`` of every head: the text form of vision-aware head divergence."""
    return {
        (layer, head): float((z[head] - without[layer][head]).norm())
        for layer, z in whole.items()
        for head in range(len(z))
    }


def reinforced_heads(
    whole: dict[int, Float[Tensor, "head d_value"]], without: dict[int, Float[Tensor, "head d_value"]]
) -> tuple[Head, ...]:
    """The heads that VHR makes twice as large: in each layer those above its median dependence, outliers left out.

    Outliers count as 0. The paper goes through the layers in order, with earlier ones already reinforced, and a
    re-implementation of its defaults takes layer 1 and the last 14 of LLaVA-1.5 alone; here heads of all layers are
    chosen, in the model as it is.
    """
    found = dependence(whole, without)
    chosen: list[Head] = []
    for layer, z in without.items():
        each = np.array([found[layer, head] for head in range(len(z))])
        each[outliers(each, z.square().sum(-1).numpy())] = 0
        chosen += [(layer, head) for head in range(len(z)) if each[head] > np.median(each)]
    return tuple(chosen)


def outliers(divergence: Float[np.ndarray, " head"], size: Float[np.ndarray, " head"]) -> Bool[np.ndarray, " head"]:
    """Heads of one layer that VHR leaves out: divergence and ``|z(without)|^2`` both above mean plus deviation.

    Such a head moves because it is large, whatever the span.

    >>> outliers(np.array([1.0, 1.0, 1.0, 9.0]), np.array([1.0, 1.0, 1.0, 9.0])).tolist()
    [False, False, False, True]
    """
    flags: np.ndarray = (divergence > divergence.mean() + divergence.std()) & (size > size.mean() + size.std())
    return flags
