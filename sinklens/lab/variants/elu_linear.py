"""Linear attention with the feature map elu + 1, with and without normalisation."""

import math

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import elu


def elu_linear(
    query: Float[Tensor, "batch head q_pos d_head"],
    key: Float[Tensor, "batch head k_pos d_head"],
    visible: Bool[Tensor, "q_pos k_pos"],
    *,
    normalise: bool = True,
) -> Float[Tensor, "batch head q_pos k_pos"]:
    """Return ``A_ij = phi(q_i) . phi(k_j) / Z_i`` with ``phi(x) = elu(x) + 1 > 0``.

    With ``normalise`` ``Z_i`` is the row's sum over the visible keys and rows sum to one; without,
    ``Z_i = sqrt(d_head)`` and row sums are free. There is no score before a nonlinearity, so logit margins are not
    applicable. Written out as weights (quadratic in the length), so that they can be measured.

    Args:
        query: queries, after rotary encoding.
        key: keys, after rotary encoding.
        visible: which keys a query sees.
        normalise: divide by the row's sum.

    Source: Katharopoulos et al., "Transformers are RNNs" (arXiv 2006.16236); both forms in Gu et al. (arXiv
    2410.10781), section 7. The scale of the second form is a choice made here.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 1, 2, 4)
        >>> elu_linear(x, x, torch.ones(2, 2).tril().bool(), normalise=False)[0, 0]
        tensor([[2., 0.],
                [2., 2.]])
    """
    products = (elu(query) + 1) @ (elu(key) + 1).transpose(-1, -2) * visible
    return products / (products.sum(-1, keepdim=True) if normalise else math.sqrt(query.shape[-1]))
