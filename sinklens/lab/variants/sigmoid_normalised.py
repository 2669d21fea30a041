"""Sigmoid attention with normalisation: the sigmoid's shape under the softmax's constraint."""

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from sinklens.lab.variants.softmax import softmax


def sigmoid_normalised(
    scores: Float[Tensor, "batch head q_pos k_pos"], visible: Bool[Tensor, "q_pos k_pos"]
) -> Float[Tensor, "batch head q_pos k_pos"]:
    """Return ``A_ij = sigma(s_ij) / sum_j' sigma(s_ij')`` over the visible keys.

    Rows sum to one. Not shift-invariant: all scores at ``+inf`` give equal weights. Computed as the softmax of
    ``log sigma(s)``, so a row of very negative scores stays a distribution.

    Args:
        scores: as in :func:`~sinklens.lab.variants.softmax`.
        visible: which keys a query sees.

    Source: Gu et al. (arXiv 2410.10781), section 7.

    Example:
        >>> import torch
        >>> sigmoid_normalised(torch.zeros(1, 1, 2, 2), torch.ones(2, 2).tril().bool())[0, 0]
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    return softmax(logsigmoid(scores), visible)
