"""Sigmoid attention without normalisation: every key is weighed by itself."""

from jaxtyping import Bool, Float
from torch import Tensor


def sigmoid(
    scores: Float[Tensor, "batch head q_pos k_pos"], visible: Bool[Tensor, "q_pos k_pos"]
) -> Float[Tensor, "batch head q_pos k_pos"]:
    """Return ``A_ij = 1 / (1 + exp(-s_ij))`` at the visible keys.

    Row sums are free, between 0 and the number of visible keys. Not shift-invariant.

    Args:
        scores: as in :func:`~sinklens.lab.variants.softmax`.
        visible: which keys a query sees.

    Source: Gu et al. (arXiv 2410.10781), section 7, "sigmoid attention without normalisation"; no bias.

    Example:
        >>> import torch
        >>> sigmoid(torch.zeros(1, 1, 2, 2), torch.ones(2, 2).tril().bool())[0, 0]
        tensor([[0.5000, 0.0000],
                [0.5000, 0.5000]])
    """
    return scores.sigmoid() * visible
