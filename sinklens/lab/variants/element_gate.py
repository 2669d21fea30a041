"""Element-wise output gate: every channel of a head can be switched off after the softmax."""

from jaxtyping import Float
from torch import Tensor


def element_gate(
    output: Float[Tensor, "batch head q_pos d_head"], gate_logits: Float[Tensor, "batch head q_pos d_head"]
) -> Float[Tensor, "batch head q_pos d_head"]:
    """Return ``o'_ic = sigma(g_ic) o_ic``: one gate per head, query and channel, before the output projection.

    The weights stay a softmax whose rows sum to one. With equal logits in all channels this is
    :func:`~sinklens.lab.variants.head_gate`.

    Args:
        output: ``sum_j A_ij v_j``.
        gate_logits: ``g``.

    Source: Qiu et al. (arXiv 2505.06708), G1 element-wise.

    Example:
        >>> import torch
        >>> element_gate(torch.full((1, 1, 1, 2), 4.0), torch.tensor([[[[0.0, 100.0]]]])).tolist()
        [[[[2.0, 4.0]]]]
    """
    return output * gate_logits.sigmoid()
