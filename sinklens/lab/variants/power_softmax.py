"""Power-softmax: an even power in place of the exponential."""

from jaxtyping import Bool, Float
from torch import Tensor


def power_softmax(
    scores: Float[Tensor, "batch head q_pos k_pos"], visible: Bool[Tensor, "q_pos k_pos"], power: int = 4
) -> Float[Tensor, "batch head q_pos k_pos"]:
    """Return ``A_ij = s_ij^p / sum_j' s_ij'^p`` over the visible keys, for an even ``p``.

    Rows sum to one (to zero where every score is exactly 0). Large negative scores count as much as large positive
    ones. Not shift-invariant, but scale-invariant: ``A(c s) = A(s)``.

    Args:
        scores: as in :func:`~sinklens.lab.variants.softmax`.
        visible: which keys a query sees.
        power: an even number; the paper leaves it open, 4 is a choice made here.

    Source: Zimerman et al., "Power-Softmax" (arXiv 2410.09457). Deviation: rows are divided by their largest
    absolute score first, which changes nothing but keeps the powers in range.

    Example:
        >>> import torch
        >>> power_softmax(torch.tensor([[[[1.0, 0.0], [-1.0, 1.0]]]]), torch.ones(2, 2).tril().bool())[0, 0]
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    shown = scores * visible
    raised = (shown / shown.detach().abs().amax(-1, keepdim=True).clamp(min=1e-12)) ** power
    return raised / raised.sum(-1, keepdim=True).clamp(min=1e-12)
