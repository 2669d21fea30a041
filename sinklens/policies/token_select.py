"""TokenSelect: all heads of a layer read the same keys, chosen by a vote."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.choose import top_keys
from sinklens.policies.renumber import Renumbering, unrotated
from sinklens.policies.rotary import turned
from sinklens.policies.view import View


@dataclass(frozen=True)
class TokenSelect(Renumbering):
    """Keeps first and recent tokens and those with the most votes, the same for all heads of a layer.

    Every head votes with its attention (softmax *before* the sum, so that no head shouts the others down). With
    ``renumber=True`` as published: the rows of a chunk vote once, with the mean of their un-rotated queries, turned to
    position ``recent``, against un-rotated keys (no ``1 / sqrt(d)``); the recent tokens are those before the chunk.

    Args:
        k: Keys by vote.
        first: First tokens that stay.
        recent: Most recent tokens that stay.
        chunk: Rows that vote together, where keys are numbered anew: the scope is then "block", and "causal" for 1.
    """

    k: int = 64
    first: int = 4
    recent: int = 32
    chunk: int = 512

    name: ClassVar[str] = "token_select"
    scope: ClassVar = "causal"
    group: ClassVar = "layer"
    positive: ClassVar = ("chunk",)
    source: ClassVar[str] = "Wu et al. 2024, arXiv 2411.02886; pzs19/TokenSelect"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.renumber and self.chunk > 1:
            object.__setattr__(self, "scope", "block")

    def choice(self, view: View) -> Bool[Tensor, "q_pos k_pos"]:
        """First, recent and voted keys."""
        if self.renumber:
            chunks = view.rows.div(self.chunk, rounding_mode="floor") * self.chunk
            return torch.cat(
                [self._of_chunk(view, int(c)).expand(int((chunks == c).sum()), -1) for c in chunks.unique()]
            )
        always = (view.keys < self.first) | (view.distance < self.recent)
        votes = view.pattern.sum(0)
        return top_keys(votes, self.k, view.visible.any(0) & ~always) | always

    def _of_chunk(self, view: View, start: int) -> Bool[Tensor, " k_pos"]:
        """Keys that the rows from ``start`` on read, as far as they see them."""
        near, (begun, end) = view.keys >= start - self.recent, view.span
        among = (view.keys >= self.first) & ~near
        if int(among.sum()) <= self.k or start >= end:  # few keys, or padding behind the text
            return view.keys >= 0
        rows = torch.arange(max(start, begun), min(start + self.chunk, end), device=view.keys.device)
        query = unrotated(view.queries_of(int(rows[0]), int(rows[-1]) + 1), rows, view).mean(1, keepdim=True)
        query = turned(query, torch.full_like(rows[:1], self.recent).float(), view.frequencies)
        whole = torch.arange(view.all_keys.shape[1], device=rows.device) + view.keys[0]
        keys = view.the_same(("unrotated", view.heads), lambda: unrotated(view.all_keys, whole, view))
        scores = (query @ keys.mT / view.scaling)[:, 0, : len(view.keys)].masked_fill(~among, -math.inf)
        return top_keys(scores.softmax(-1).sum(0), self.k, among) | near | (view.keys < self.first)

    @classmethod
    def sized(cls, keys: int, length: int) -> "TokenSelect":
        """Half by vote, an eighth first, the rest recent."""
        first = min(4, max(1, keys // 8))
        recent = max(1, keys // 2 - first)
        return cls(max(0, keys - first - recent), first, recent)
