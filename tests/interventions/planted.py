"""Edits on patterns made by hand, through the kernel and without a model."""

from typing import Any

import torch
from torch import Tensor

from sinklens.attention import AttentionCall
from sinklens.attention.kernel import attend
from sinklens.interventions import Intervention
from sinklens.interventions.positions import Positions


def edited(pattern: Tensor, method: Intervention, rows_per_block: int | None = None, **fields: Any) -> Tensor:
    """The kernel's pattern [head q_pos k_pos] under the method, read off as outputs: the values are unit vectors."""
    heads, n, _ = pattern.shape
    query = torch.eye(n).expand(1, heads, n, n)
    key = pattern.clamp(min=1e-38).log().transpose(-1, -2)[None]  # query i picks out row i of the logarithms
    call = AttentionCall(0, query, key, torch.eye(n).expand(1, heads, n, n), scaling=1.0, **fields)
    positions = Positions()
    positions.n_layers = 4
    return attend(call, (), list(method.edits(positions)), rows_per_block=rows_per_block)[0]


def stochastic(n: int, seed: int, heads: int = 2) -> Tensor:
    """A random causal pattern [head n n] with planted sinks."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(heads, n, n, generator=generator)
    scores[:, :, [0, n // 3, n // 2]] += 4
    return torch.softmax(scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf), -1)
