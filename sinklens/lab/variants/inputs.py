"""What an attention variant may read: queries, keys, who sees whom, and what a head has learned besides."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class AttentionInputs:
    """One layer's attention before the scores become weights.

    Attributes:
        query: ``[batch head q_pos d_head]``, after rotary encoding.
        key: ``[batch head k_pos d_head]``, after rotary encoding.
        visible: which keys a query sees, ``[q_pos k_pos]``.
        bias: added to the scores (ALiBi), ``[head q_pos k_pos]``.
        learned: further parameters of the layer, by the names in ``Variant.learns``.
    """

    query: Float[Tensor, "batch head q_pos d_head"]
    key: Float[Tensor, "batch head k_pos d_head"]
    visible: Bool[Tensor, "q_pos k_pos"]
    bias: Float[Tensor, "head q_pos k_pos"] | None = None
    learned: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def scores(self) -> Float[Tensor, "batch head q_pos k_pos"]:
        """``q_i . k_j / sqrt(d_head)`` plus the bias; also where the query does not see the key."""
        scores = self.query @ self.key.transpose(-1, -2) / math.sqrt(self.query.shape[-1])
        return scores if self.bias is None else scores + self.bias

    @property
    def bias_scores(self) -> Float[Tensor, "batch head q_pos"]:
        """Scores of the learned key, ``q_i . k* / sqrt(d_head)``; it has no position."""
        key = self.learned["bias_key"]
        return torch.einsum("bhqd,hd->bhq", self.query, key) / math.sqrt(key.shape[-1])
