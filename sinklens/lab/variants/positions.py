"""Where tokens stand: rotary encoding, ALiBi's bias, and which keys a query sees."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def rotate(x: Float[Tensor, "batch head pos d_head"], base: float = 10_000.0) -> Float[Tensor, "batch head pos d_head"]:
    """Return ``x`` with channel pairs ``(c, c + d_head/2)`` turned by ``pos * base^(-2c/d_head)`` (RoPE).

    Norms stay; dot products of two rotated vectors depend on the distance of their positions alone.

    Source: Su et al. (arXiv 2104.09864), in the half-split layout of Llama.

    Example:
        >>> x = torch.ones(1, 1, 3, 2)
        >>> [round(v, 3) for v in rotate(x)[0, 0, 1].tolist()]
        [-0.301, 1.382]
    """
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def alibi(heads: int, length: int) -> Float[Tensor, "head q_pos k_pos"]:
    """Return ALiBi's bias ``-m_h |i - j|`` with slopes ``m_h = 2^(-8 h / heads)``, h from 1.

    Source: Press et al. (arXiv 2108.12409).

    Example:
        >>> alibi(8, 3)[0].tolist()
        [[-0.0, -0.5, -1.0], [-0.5, -0.0, -0.5], [-1.0, -0.5, -0.0]]
    """
    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
    pos = torch.arange(length)
    return -slopes[:, None, None] * (pos[:, None] - pos).abs()


def visible_keys(length: int, window: int | None = None, prefix: int = 0) -> Bool[Tensor, "q_pos k_pos"]:
    """Return which keys a query sees: ``j <= i`` and ``i - j < window``, and the prefix ``j < prefix`` always.

    Args:
        length: positions.
        window: keys in the sliding window, the query's own included; None for all before it.
        prefix: positions that every query sees, also the ones before it.

    Source: the masks of Gu et al. (arXiv 2410.10781), section 6.

    Example:
        >>> visible_keys(3, window=2, prefix=1).int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    pos = torch.arange(length)
    distance = pos[:, None] - pos
    visible = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    return visible | (pos < prefix)
