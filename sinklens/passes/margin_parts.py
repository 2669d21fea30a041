"""The margin of a key as products: of directions with keys and queries, of their parts, by rotary band."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.passes.qk_projection import Projection


def margin_directions(
    query: Float[Tensor, "batch pos d_head"],
    key: Float[Tensor, "batch pos d_head"],
    position: int,
    window: int | None = None,
) -> tuple[Float[Tensor, "batch pos d_head"], Float[Tensor, "batch pos d_head"]]:
    """Directions whose products with the keys, and with the queries, are both the mean margin of one key.

    Args:
        query: Queries times the scaling.
        key: Keys.
        position: The key whose margin it is.
        window: How many keys a query sees, itself included; ``None`` for all before it.

    Cost: O(pos d_head): sums over keys are differences of running sums.

    Example:
        >>> q, k = torch.randn(1, 6, 4).double(), torch.randn(1, 6, 4).double()
        >>> to_key, to_query = margin_directions(q, k, 0)
        >>> scores = (q @ k.mT)[0]
        >>> margin = torch.stack([scores[t, 0] - scores[t, 1 : t + 1].mean() for t in range(1, 6)]).mean()
        >>> bool(torch.isclose((to_key * k).sum(), margin) & torch.isclose((to_query * q).sum(), margin))
        True
    """
    width = query.shape[1]
    window = width if window is None else min(window, width)
    index = torch.arange(width, device=query.device)
    others = (index + 1).clamp(max=window) - 1
    rows = (index >= position) & (index - position < window) & (others > 0)
    count = rows.sum().clamp(min=1)
    weighted = torch.where(rows[:, None], query, 0) / count
    per_other = weighted / others.clamp(min=1)[:, None]
    ahead = torch.nn.functional.pad(per_other.flip(1).cumsum(1).flip(1), (0, 0, 0, window))
    to_key = -(ahead[:, :width] - ahead[:, window : window + width])  # queries j <= t < j + window
    to_key[:, position] = weighted.sum(1)
    sums = torch.nn.functional.pad(key.cumsum(1), (0, 0, window, 0))
    seen = sums[:, window:] - sums[:, :width]
    mean = (seen - key[:, position : position + 1]) / others.clamp(min=1)[:, None]
    to_query = torch.where(rows[:, None], key[:, position : position + 1] - mean, 0) / count
    return to_key, to_query


def query_parts(query: Projection, head: int, hidden: Tensor, named: Sequence[int]) -> list[Tensor]:
    """A head's queries in parts: from each named channel, from all others, from biases."""
    each = [query.part(head, hidden, torch.tensor([channel], device=hidden.device)) for channel in named]
    whole = query.part(head, hidden, torch.arange(hidden.shape[-1], device=hidden.device))
    rest = whole - sum(each) if each else whole
    return [*each, rest, query.state[:, head] - whole]


def key_parts(
    key: Projection, head: int, hidden: Tensor, direction: Tensor, named: Sequence[int]
) -> Float[Tensor, "batch part"]:
    """The product of a direction with a head's keys, in the same parts of the keys."""
    read, bias = key.pull_back(head, direction)
    by_channel = (read * hidden).sum(1)
    own = by_channel[:, [*named]]
    return torch.cat((own, (by_channel.sum(1) - own.sum(1))[:, None], bias[:, None]), 1)


def band_shares(q: Tensor, k: Tensor, to_key: Tensor, rotate: Any, rotary: Any) -> tuple[Tensor, np.ndarray]:
    """The margin by pair of rotated dims, and how many tokens each takes for a turn."""
    by_dim = (to_key * k).sum(1)
    paired, width = getattr(rotate, "pairs", ("none", 0))
    if not width:
        return by_dim.sum(1, keepdim=True), np.array([math.inf])
    turned, still = by_dim[:, :width], by_dim[:, width:].sum(1, keepdim=True)
    pairs = turned.unflatten(1, (2, -1)).sum(1) if paired == "halves" else turned.unflatten(1, (-1, 2)).sum(2)
    cos, sin = (each.double().reshape(-1, each.shape[-2], each.shape[-1])[0] for each in rotary)
    step = torch.atan2(sin[1] * cos[0] - cos[1] * sin[0], cos[1] * cos[0] + sin[1] * sin[0]).abs()
    if cos.shape[-1] == width:
        step = step[: width // 2] if paired == "halves" else step[::2]
    waves = (2 * math.pi / step.clamp(min=1e-12)).cpu().numpy()
    return torch.cat((pairs, still), 1), np.append(waves, math.inf)
