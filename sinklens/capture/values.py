"""Norms of value states, before and after the output projection."""

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.capture.record import ValueNorms


def output_factor(
    weights: Float[Tensor, "head d_value d_model"],
) -> Float[Tensor, "head d_small d_value"]:
    """R with ``|R v| = |v W_O^h|`` for every v: the triangular factor of a QR decomposition of ``W_O^h.T``.

    Exact, and norms no longer need the ``[pos d_model]`` product. Cost: O(heads d_model d_value^2), once per
    model.
    """
    factor: Tensor = torch.linalg.qr(weights.detach().float().transpose(-1, -2), mode="r").R
    return factor


def value_norms(
    value: Float[Tensor, "batch kv_head pos d_value"],
    factor: Float[Tensor, "head d_small d_value"] | None,
) -> ValueNorms:
    """L2 norms of the value states: ``|v|`` per KV head and ``|v W_O^h|`` per query head.

    Query head h reads KV head ``h // (heads / kv_heads)``.

    Args:
        value: Value states of one layer.
        factor: :func:`output_factor` of the layer's W_O, or ``None`` when W_O cannot be read.

    Cost: O(pos d_value^2) per head and sequence.

    Example:
        >>> import torch
        >>> v = torch.tensor([[[[3.0, 4.0]]]])
        >>> w_o = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
        >>> norms = value_norms(v, output_factor(w_o))
        >>> norms.value.item(), round(norms.output.item(), 4)
        (5.0, 8.544)
    """
    value = value.float()
    norm = torch.linalg.vector_norm(value, dim=-1)
    if factor is None or factor.shape[-1] != value.shape[-1] or factor.shape[0] % value.shape[1]:
        return ValueNorms(norm, None)
    factor = factor.to(value.device)
    n_kv, group = value.shape[1], factor.shape[0] // value.shape[1]
    outputs = torch.empty(len(value), factor.shape[0], value.shape[2], device=value.device)
    for own, together in zip(range(n_kv), factor.unflatten(0, (n_kv, group)).flatten(1, 2), strict=True):
        written = (value[:, own] @ together.T).unflatten(-1, (group, -1))  # of all heads that read these values
        outputs[:, own * group : (own + 1) * group] = torch.linalg.vector_norm(written, dim=-1).transpose(1, 2)
    return ValueNorms(norm, outputs)
