"""Sink and window: the first tokens and the most recent ones (StreamingLLM's mask, MInference's A-shape)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class SinkWindow(Policy):
    """Keeps the first ``sinks`` tokens and the last ``recent`` ones, at the positions where they stood.

    ``M[t, i] = i < sinks or t - i < recent`` and, with ``evict_after=True``, ``t - i <= recent``: StreamingLLM's cache
    is cut after each step, so a query reads itself on top of what the cache holds.

    Args:
        sinks: First tokens that stay.
        recent: Most recent tokens.
        evict_after: Whether the query's own key comes on top of ``recent``.
    """

    sinks: int = 4
    recent: int = 252
    evict_after: bool = False

    name: ClassVar[str] = "sink_window"
    scope: ClassVar = "causal"
    group: ClassVar = "model"
    evicts: ClassVar[bool] = True
    positive: ClassVar = ("recent",)
    source: ClassVar[str] = "Xiao et al. 2024, arXiv 2309.17453; A-shape of MInference, arXiv 2407.02490"

    def keep(self, view: View) -> Bool[Tensor, "q_pos k_pos"]:
        """First and last tokens."""
        window = self.recent + 1 if self.evict_after else self.recent
        return (view.keys < self.sinks) | (view.distance < window)

    @classmethod
    def sized(cls, keys: int, length: int) -> "SinkWindow":
        """Four sinks, or a quarter of a small budget, and the rest recent."""
        sinks = min(4, keys // 4)
        return cls(sinks, max(1, keys - sinks))
