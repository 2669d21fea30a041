"""Learned sink logit: one number per head joins the softmax and is dropped again (gpt-oss)."""

from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.lab.variants.k_bias import k_bias


def sink_logit(
    scores: Float[Tensor, "batch head q_pos k_pos"],
    visible: Bool[Tensor, "q_pos k_pos"],
    logit: Float[Tensor, " head"],
) -> Float[Tensor, "batch head q_pos k_pos"]:
    """Return ``A_ij = exp(s_ij) / (exp(b) + sum_j' exp(s_ij'))`` with a learned ``b`` per head.

    Rows sum to at most one; the rest, ``exp(b) / (...)``, goes nowhere. ``b = 0`` is
    :func:`~sinklens.lab.variants.softmax_off_by_one`, ``b -> -inf`` the plain softmax. Unlike a K-bias the logit
    does not depend on the query.

    Args:
        scores: as in :func:`~sinklens.lab.variants.softmax`.
        visible: which keys a query sees.
        logit: ``b``.

    Source: the gpt-oss models, as in ``transformers``' modeling_gpt_oss.

    Example:
        >>> import torch
        >>> sink_logit(torch.zeros(1, 1, 1, 1), torch.ones(1, 1).bool(), torch.zeros(1)).item()
        0.5
    """
    return k_bias(scores, visible, logit[:, None].expand(scores.shape[:3]))[..., 1:]
