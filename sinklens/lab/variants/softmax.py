"""Softmax attention: every row is a distribution, so mass that nothing deserves has to go somewhere."""

import math

from jaxtyping import Bool, Float
from torch import Tensor


def softmax(
    scores: Float[Tensor, "batch head q_pos k_pos"], visible: Bool[Tensor, "q_pos k_pos"]
) -> Float[Tensor, "batch head q_pos k_pos"]:
    """Return ``A_ij = exp(s_ij) / sum_j' exp(s_ij')`` over the visible keys, 0 elsewhere.

    Rows sum to one. A constant added to a row changes nothing.

    Args:
        scores: ``q . k / sqrt(d_head)``, with position bias if there is one.
        visible: which keys a query sees; each sees at least one.

    Example:
        >>> import torch
        >>> softmax(torch.zeros(1, 1, 2, 2), torch.ones(2, 2).tril().bool())[0, 0]
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    return scores.masked_fill(~visible, -math.inf).softmax(-1)
