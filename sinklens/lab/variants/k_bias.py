"""K-bias: one learned key per head without a value, an explicit place for mass that nothing deserves."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def k_bias(
    scores: Float[Tensor, "batch head q_pos k_pos"],
    visible: Bool[Tensor, "q_pos k_pos"],
    bias_scores: Float[Tensor, "batch head q_pos"],
) -> Float[Tensor, "batch head q_pos extra_k_pos"]:
    """Return the softmax over ``[s_i*, s_i0, ..., s_ii]`` with ``s_i* = q_i . k* / sqrt(d_head)``, column 0 for ``k*``.

    The learned key ``k*`` stands outside the sequence (no position encoding) and its value is zero, so column 0
    is dropped before the weights meet the values. Rows sum to one with column 0 and to at most one without it.
    ``s* -> -inf`` is the plain softmax; ``s* = 0`` is :func:`~sinklens.lab.variants.softmax_off_by_one`. A
    constant added to a row of ``scores`` moves mass between the bias and the tokens.

    Args:
        scores: as in :func:`~sinklens.lab.variants.softmax`.
        visible: which keys a query sees.
        bias_scores: ``s*`` of every query.

    Source: Gu et al., "When Attention Sink Emerges in Language Models" (arXiv 2410.10781), section 7; their metric
    reads column 0 as ``Sink_*`` and column 1 as ``Sink_1``.

    Example:
        >>> import torch
        >>> k_bias(torch.zeros(1, 1, 1, 1), torch.ones(1, 1).bool(), torch.zeros(1, 1, 1)).tolist()
        [[[[0.5, 0.5]]]]
    """
    return torch.cat([bias_scores[..., None], scores.masked_fill(~visible, -math.inf)], -1).softmax(-1)
