"""Head-wise output gate: a head can switch itself off after the softmax."""

from jaxtyping import Float
from torch import Tensor


def head_gate(
    output: Float[Tensor, "batch head q_pos d_head"], gate_logits: Float[Tensor, "batch head q_pos"]
) -> Float[Tensor, "batch head q_pos d_head"]:
    """Return ``o'_i = sigma(g_i) o_i``: one gate per head and query, before the output projection.

    The weights stay a softmax whose rows sum to one; what leaves the head is scaled. The gate's logits are linear in
    the block's normalised input. Logits of zero halve the output, large ones leave it.

    Args:
        output: ``sum_j A_ij v_j``.
        gate_logits: ``g``.

    Source: Qiu et al., "Gated Attention for Large Language Models" (arXiv 2505.06708), G1 head-wise.

    Example:
        >>> import torch
        >>> head_gate(torch.full((1, 1, 1, 2), 4.0), torch.zeros(1, 1, 1)).tolist()
        [[[[2.0, 2.0]]]]
    """
    return output * gate_logits.sigmoid()[..., None]
