"""RazorAttention: what a window drops lives on as one token with the mean key and value."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.policies.head_split import HeadSplit
from sinklens.policies.view import View


@dataclass(frozen=True)
class Razor(HeadSplit):
    """Lets some heads read everything; the others keep first and recent tokens and one compensation token for the rest.

    The token has the mean key and value of what was dropped and counts as often. Computed without building it: every
    dropped key gets the mean of the dropped scores, which is the same where they are equal and never weighs more.

    Args:
        full: Heads that read everything.
        sinks: First tokens that the others keep.
        recent: Most recent tokens that they keep, the query's own included.
    """

    name: ClassVar[str] = "razor"
    evicts: ClassVar[bool] = False
    source: ClassVar[str] = "Tang et al. 2025, arXiv 2407.15891, Algorithm 1"

    def _dropped(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        return ~super().keep(view) & view.visible

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Dropped keys at the score of the compensation token."""
        dropped = self._dropped(view)
        count = dropped.sum(-1, keepdim=True).clamp(min=1)
        token = view.scores.masked_fill(~dropped, 0).sum(-1, keepdim=True) / count
        return torch.where(dropped, token, view.scores)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Everything: what is dropped stands for itself at the token's score."""
        return view.visible

    def as_they_are(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Bool[Tensor, "head q_pos k_pos"]:
        """First and recent tokens, or all."""
        return kept & ~self._dropped(view)

    def entries(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "head q_pos"]:
        """Kept keys, and one for the token."""
        dropped = self._dropped(view)
        return (kept & ~dropped).sum(-1) + dropped.any(-1).float()

    def cached(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "kv_head q_pos"]:
        """Keys that any query head keeps, and the token where one has it."""
        dropped = self._dropped(view).unflatten(0, (view.kv_heads, -1))
        kept_by_any: Tensor = (view.visible.unflatten(0, (view.kv_heads, -1)) & ~dropped).any(1)
        found: Tensor = kept_by_any.sum(-1) + dropped.any(-1).any(1).float()
        return found

    @classmethod
    def sized(cls, keys: int, length: int) -> "Razor":
        """Four sinks, or a quarter of a small budget, one token, and the rest recent; no head is full."""
        sinks = min(4, keys // 4)
        return cls((), sinks, max(1, keys - sinks - 1))
