"""Softmax-off-by-one: a head may attend to nothing."""

from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.lab.variants.k_bias import k_bias


def softmax_off_by_one(
    scores: Float[Tensor, "batch head q_pos k_pos"], visible: Bool[Tensor, "q_pos k_pos"]
) -> Float[Tensor, "batch head q_pos k_pos"]:
    """Return ``A_ij = exp(s_ij) / (1 + sum_j' exp(s_ij'))`` ("softmax1").

    Rows sum to at most one; the rest goes nowhere. The same as a token before the sequence whose key and value are
    zero. Scores that all go to ``-inf`` give weights of zero, where the softmax stays a distribution.

    Args:
        scores: as in :func:`~sinklens.lab.variants.softmax`.
        visible: which keys a query sees.

    Source: Miller, "Attention Is Off By One" (2023); the zero sink of Xiao et al. (arXiv 2309.17453).

    Example:
        >>> import torch
        >>> softmax_off_by_one(torch.zeros(1, 1, 1, 1), torch.ones(1, 1).bool()).item()
        0.5
    """
    return k_bias(scores, visible, scores.new_zeros(scores.shape[:3]))[..., 1:]
