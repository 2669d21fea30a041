"""Proxy scores: what attention metrics read where rows do not sum to one."""

from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-8


def proxy(
    weights: Float[Tensor, "batch head q_pos k_pos"],
) -> Float[Tensor, "batch head q_pos k_pos"]:
    """Return ``|A_ij| / (sum_j' |A_ij'| + 1e-8)``; a row of zeros stays one.

    A share of the row, not an amount: a head that writes almost nothing can have large proxy scores. Wherever a
    figure comes from these, it is labelled ``proxy`` (the papers mark it with an asterisk).

    Source: Gu et al. (arXiv 2410.10781), section 7 and their released code.

    Example:
        >>> import torch
        >>> proxy(torch.tensor([[[[0.0, 0.0], [-1.0, 3.0]]]]))[0, 0]
        tensor([[0.0000, 0.0000],
                [0.2500, 0.7500]])
    """
    size = weights.abs()
    return size / (size.sum(-1, keepdim=True) + EPSILON)
