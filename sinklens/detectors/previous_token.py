"""Previous-token heads: attention on the token just before."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.detectors.base import Metric
from sinklens.detectors.registry import register
from sinklens.detectors.target_means import TargetDetector, mean_on_targets
from sinklens.models.tokens import TokenBatch

METRIC = Metric(
    "previous_token",
    1,
    "Mean over queries i >= 1 of A[i, i-1]. Query 0 has no token before it and is left out. Null: the same under "
    "uniform attention over the keys that the layer lets a query see (.062 for 61 tokens).",
    "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; TransformerLens demos; null added here",
)


def previous_token_targets(real: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch q_pos 1"]:
    """Key i-1 for every real query i >= 1.

    Example:
        >>> previous_token_targets(torch.tensor([[True, True, False]])).flatten().tolist()
        [-1, 0, -1]
    """
    before = torch.arange(real.shape[1], device=real.device) - 1
    return torch.where(real, before, -1)[..., None]


def previous_token_score(pattern: Float[Tensor, "*batch head q_pos k_pos"]) -> Float[Tensor, "*batch head"]:
    """Mean over queries i >= 1 of the attention on i-1; NaN with one token.

    Example:
        >>> uniform = torch.ones(1, 61, 61).tril() / torch.arange(1, 62)[:, None]
        >>> round(previous_token_score(uniform).item(), 4)
        0.0616
    """
    before = torch.arange(pattern.shape[-2], device=pattern.device)[:, None] - 1
    return mean_on_targets(pattern, before.expand(*pattern.shape[:-3], -1, -1))


@register
class PreviousTokenDetector(TargetDetector):
    """How much each head attends to the token just before: 1 where it looks nowhere else, 0 where never there.

    Score ``previous_token``, see :func:`previous_token_score`.
    """

    name = "previous_token"
    metrics = (METRIC,)

    def targets(self, batch: TokenBatch) -> Int[Tensor, "batch q_pos 1"]:
        """Key i-1 for every real query i >= 1."""
        return previous_token_targets(batch.real)
