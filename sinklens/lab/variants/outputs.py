"""How weights become a head's output where more than a mean of values is learned: KV-bias and output gates."""

from jaxtyping import Float
from torch import Tensor

Outputs = Float[Tensor, "batch head q_pos d_head"]


def kv_bias(
    weights: Float[Tensor, "batch head q_pos extra_k_pos"],
    value: Float[Tensor, "batch head k_pos d_head"],
    bias_value: Float[Tensor, "head d_head"],
) -> Outputs:
    """Return the output ``o_i = A_i* v* + sum_j A_ij v_j`` of the weights that :func:`k_bias` gives.

    With ``v* = 0`` this is K-bias. Rows of ``weights`` sum to one with column 0 and to at most one without it.

    Args:
        weights: column 0 belongs to the learned pair.
        value: values of the real keys.
        bias_value: ``v*`` of every head.

    Source: Gu et al. (arXiv 2410.10781), section 7; before them Sun et al., "Massive Activations in Large Language
    Models" (arXiv 2402.17762).

    Example:
        >>> import torch
        >>> kv_bias(torch.tensor([[[[0.25, 0.75]]]]), torch.full((1, 1, 1, 1), 4.0), torch.tensor([[8.0]])).item()
        5.0
    """
    return weights[..., 1:] @ value + weights[..., :1] * bias_value[:, None]


def head_gate(output: Outputs, gate_logits: Float[Tensor, "batch head q_pos"]) -> Outputs:
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


def element_gate(output: Outputs, gate_logits: Outputs) -> Outputs:
    """Return ``o'_ic = sigma(g_ic) o_ic``: one gate per head, query and channel, before the output projection.

    The weights stay a softmax whose rows sum to one. With equal logits in all channels this is
    :func:`head_gate`.

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
