"""Softplus attention with re-weighting (LSSAR): normalise first, sharpen afterwards."""

import math

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize, softplus

EARLY_ROWS = 3
"""Queries that see at most this many keys keep every key: their offset is 0."""


def softplus_reweighted(
    query: Float[Tensor, "batch head q_pos d_head"],
    key: Float[Tensor, "batch head k_pos d_head"],
    visible: Bool[Tensor, "q_pos k_pos"],
    power: int = 3,
) -> Float[Tensor, "batch head q_pos k_pos"]:
    """Return ``A = norm_1(relu(n_i B_ij - o_i)^p)`` with ``B = norm_1(softplus(log(d) log(n_i) cos(q_i, k_j)))``.

    ``n_i`` is the number of keys that query i sees, ``norm_1`` divides a row by its sum and ``o_i`` is 1, except 0
    where ``n_i <= 3``: keys that get less than the uniform share of the first stage are cut off. Rows sum to one,
    or to zero where all keys of a row are exactly equal. Scores have no scale of their own: only directions count.

    Args:
        query: queries, after rotary encoding.
        key: keys, after rotary encoding.
        visible: which keys a query sees.
        power: ``p``; the paper finds 3 best at the training length and 15 for extrapolation.

    Source: Gao and Spratling, "Softplus Attention with Re-weighting" (arXiv 2501.13428), read second-hand in two
    summaries and one re-implementation that agree. Deviation: the row is divided by its largest entry before the
    power, so that nothing has to be added to the denominator.

    Example:
        >>> import torch
        >>> x = torch.eye(4)[None, None]
        >>> softplus_reweighted(x, x, torch.ones(4, 4).tril().bool())[0, 0, 3]
        tensor([0., 0., 0., 1.])
    """
    seen = visible.sum(-1, keepdim=True).to(query.dtype)
    cosine = normalize(query, dim=-1) @ normalize(key, dim=-1).transpose(-1, -2)
    first = softplus(math.log(query.shape[-1]) * seen.log() * cosine) * visible
    first = first / first.sum(-1, keepdim=True)
    kept = (first * seen - (seen > EARLY_ROWS).to(query.dtype)).relu()
    sharp = (kept / kept.detach().amax(-1, keepdim=True).clamp(min=1e-12)) ** power
    return sharp / sharp.sum(-1, keepdim=True).clamp(min=1e-12)
