"""Induction heads: attention on the token that followed the same token the last time."""

from jaxtyping import Float, Int
from torch import Tensor

from sinklens.detectors.base import Metric
from sinklens.detectors.registry import register
from sinklens.detectors.repeats import Repeats
from sinklens.detectors.target_means import RepeatDetector, mean_on_targets

METRIC = Metric(
    "induction",
    1,
    "On a block of K random tokens that is repeated: mean over the queries i of the second block of A[i, i-K+1]. "
    "Queries of the first block have nothing to copy and are left out. Null: the same under uniform attention.",
    "Olsson et al. 2022, In-context Learning and Induction Heads; stripe as in the TransformerLens demos, restricted "
    "to the second block; null added here",
)


def induction_score(
    pattern: Float[Tensor, "*batch head q_pos k_pos"], repeats: Repeats
) -> Float[Tensor, "*batch head"]:
    """Mean over the second block's queries of the attention on the token after their earlier copy.

    Example:
        >>> import torch
        >>> after = torch.zeros(1, 5, 5)
        >>> after[0, [3, 4], [2, 3]] = 1.0
        >>> induction_score(after, Repeats(block=2)).item()
        1.0
    """
    targets = repeats.second_block(shift=1).to(pattern.device)
    return mean_on_targets(pattern, targets.expand(*pattern.shape[:-3], -1, -1))


@register
class InductionDetector(RepeatDetector):
    """How much each head attends to what came after its own token the last time: 1 where it looks nowhere else.

    Score ``induction``, see :func:`induction_score`.
    """

    name = "induction"
    metrics = (METRIC,)

    def copies(self) -> Int[Tensor, "q_pos 1"]:
        """The token after the copy in the first block, for the queries of the second."""
        return self.repeats.second_block(shift=1)
