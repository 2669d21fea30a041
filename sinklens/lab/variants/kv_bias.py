"""KV-bias: a learned key and a learned value per head, prepended to every sequence."""

from jaxtyping import Float
from torch import Tensor


def kv_bias(
    weights: Float[Tensor, "batch head q_pos extra_k_pos"],
    value: Float[Tensor, "batch head k_pos d_head"],
    bias_value: Float[Tensor, "head d_head"],
) -> Float[Tensor, "batch head q_pos d_head"]:
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
