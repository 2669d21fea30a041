"""Clipped softmax: weights can be exactly zero (and exactly one) at finite scores."""

from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.lab.variants.softmax import softmax


def clipped_softmax(
    scores: Float[Tensor, "batch head q_pos k_pos"],
    visible: Bool[Tensor, "q_pos k_pos"],
    zeta: float = 1.0,
    gamma: float = -0.03,
) -> Float[Tensor, "batch head q_pos k_pos"]:
    """Return ``A = clip((zeta - gamma) softmax(s) + gamma, 0, 1)`` at the visible keys.

    With ``gamma < 0`` a head can do nothing without pushing its scores to infinity. Rows sum to at most one when
    ``zeta <= 1``; with 34 or more equal keys and the defaults they sum to zero. Shift-invariant. A clipped weight
    passes no gradient.

    Args:
        scores: as in :func:`~sinklens.lab.variants.softmax`.
        visible: which keys a query sees.
        zeta: upper end of the stretched softmax.
        gamma: its lower end.

    Source: Bondarenko et al., "Quantizable Transformers" (arXiv 2306.12929).

    Example:
        >>> import torch
        >>> clipped_softmax(torch.zeros(1, 1, 40, 40), torch.ones(40, 40).tril().bool())[0, 0, [0, 39], 0]
        tensor([1., 0.])
    """
    return ((zeta - gamma) * softmax(scores, visible) + gamma).clamp(0, 1) * visible
