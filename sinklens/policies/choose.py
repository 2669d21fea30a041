"""Which keys are the largest: the choices that rules are made of."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.policies import compiled


def top_keys(
    values: Float[Tensor, "*rows k_pos"], count: int, among: Bool[Tensor, "*rows k_pos"]
) -> Bool[Tensor, "*rows k_pos"]:
    """The ``count`` keys with the largest values in every row, or all that there are.

    Args:
        values: What keys are compared by.
        count: How many to take; of equal ones no more than that.
        among: Keys that may be taken at all.

    >>> top_keys(torch.tensor([3.0, 1.0, 2.0]), 2, torch.tensor([True, True, True]))
    tensor([ True, False,  True])
    """
    count = min(count, values.shape[-1])
    if count <= 0:
        return torch.zeros_like(among)
    if compiled.takes(values):
        rows = values.reshape(-1, values.shape[-1]).view(torch.int32)
        taken = torch.empty(rows.shape, dtype=torch.bool)
        compiled.largest(rows.numpy(), among.reshape(rows.shape).numpy(), count, taken.numpy())
        return taken.view(values.shape)
    best = values.masked_fill(~among, -math.inf).topk(count, -1).indices
    return torch.zeros_like(among).scatter_(-1, best, True) & among


def covering_keys(
    weights: Float[Tensor, "*rows k_pos"], share: float, among: Bool[Tensor, "*rows k_pos"]
) -> Bool[Tensor, "*rows k_pos"]:
    """The fewest keys whose weights add up to at least ``share`` of the row's total.

    Args:
        weights: Non-negative.
        share: From 0 to 1; 1 takes every key.
        among: Keys that may be taken at all.

    >>> covering_keys(torch.tensor([0.5, 0.1, 0.4]), 0.8, torch.tensor([True, True, True]))
    tensor([ True, False,  True])
    """
    if share >= 1:
        return among
    ordered, index = weights.masked_fill(~among, 0).sort(dim=-1, descending=True, stable=True)
    total = ordered.sum(-1, keepdim=True)
    before = ordered.cumsum(-1) - ordered
    taken = before < share * total
    return torch.zeros_like(among).scatter_(-1, index, taken) & among


def hide_rest(
    scores: Float[Tensor, "head q_pos k_pos"], kept: Bool[Tensor, "#head q_pos k_pos"], out: Tensor
) -> Bool[Tensor, "head q_pos"]:
    """Scores with ``-inf`` at what is not kept, written to ``out``; which rows saw keys and have none left.

    >>> out = torch.tensor([[[3.0, 1.0]]])
    >>> hide_rest(out, torch.tensor([[[False, True]]]), out), out
    (tensor([[False]]), tensor([[[-inf, 1.]]]))
    """
    if compiled.takes(scores) and compiled.takes(out):
        empty = torch.empty(scores.shape[:2], dtype=torch.bool)
        compiled.hide(scores.numpy(), kept.contiguous().numpy(), out.numpy(), empty.numpy())
        return empty
    visible = scores != -math.inf
    torch.where(kept, scores, scores.new_full((), -math.inf), out=out)
    return visible.any(-1) & ~(kept & visible).any(-1)
