"""Duplicate-token heads: attention on the same token, the last time it stood there."""

from jaxtyping import Float, Int
from torch import Tensor

from sinklens.detectors.base import Metric
from sinklens.detectors.registry import register
from sinklens.detectors.repeats import Repeats
from sinklens.detectors.target_means import RepeatDetector, mean_on_targets

METRIC = Metric(
    "duplicate_token",
    1,
    "On a block of K random tokens that is repeated: mean over the queries i of the second block of A[i, i-K]. Null: "
    "the same under uniform attention.",
    "Wang et al. 2022, arXiv 2211.00593 (duplicate token heads); stripe as in the TransformerLens demos; null added "
    "here",
)


def duplicate_token_score(
    pattern: Float[Tensor, "*batch head q_pos k_pos"], repeats: Repeats
) -> Float[Tensor, "*batch head"]:
    """Mean over the second block's queries of the attention on the same token in the first block.

    Example:
        >>> import torch
        >>> same = torch.zeros(1, 5, 5)
        >>> same[0, [3, 4], [1, 2]] = 1.0
        >>> duplicate_token_score(same, Repeats(block=2)).item()
        1.0
    """
    targets = repeats.second_block().to(pattern.device)
    return mean_on_targets(pattern, targets.expand(*pattern.shape[:-3], -1, -1))


@register
class DuplicateTokenDetector(RepeatDetector):
    """How much each head attends to where its own token stood before: 1 where it looks nowhere else.

    Score ``duplicate_token``, see :func:`duplicate_token_score`.
    """

    name = "duplicate_token"
    metrics = (METRIC,)

    def copies(self) -> Int[Tensor, "q_pos 1"]:
        """The copy in the first block, for the queries of the second."""
        return self.repeats.second_block()
