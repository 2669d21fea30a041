"""ReLU attention: weights of zero are reached exactly, and nothing has to sum to one."""

from jaxtyping import Bool, Float
from torch import Tensor


def relu(
    scores: Float[Tensor, "batch head q_pos k_pos"], visible: Bool[Tensor, "q_pos k_pos"]
) -> Float[Tensor, "batch head q_pos k_pos"]:
    """Return ``A_ij = max(s_ij, 0) / n_i`` with ``n_i`` keys visible to query i.

    Row sums are free: zero when no score is positive, and without an upper bound. Not shift-invariant.

    Args:
        scores: as in :func:`~sinklens.lab.variants.softmax`.
        visible: which keys a query sees.

    Source: Guo et al., "Active-Dormant Attention Heads" (arXiv 2410.13835); Wortsman et al. (arXiv 2309.08586).

    Example:
        >>> import torch
        >>> relu(torch.tensor([[[[3.0, 9.0], [-1.0, 4.0]]]]), torch.ones(2, 2).tril().bool())[0, 0]
        tensor([[3., 0.],
                [0., 2.]])
    """
    return scores.relu() * (visible / visible.sum(-1, keepdim=True))
