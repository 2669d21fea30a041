"""TokenSelect: all heads of a layer read the same keys, chosen by a vote."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class TokenSelect(Policy):
    """Keeps first and recent tokens and those with the most votes, the same for all heads of a layer.

    Every head votes with its attention (softmax *before* the sum, so that no head shouts the others down).

    Deviation: keys keep their positions and every row votes for itself; the method votes once a chunk with the mean
    query, un-rotated, and numbers the kept keys anew.

    Args:
        k: Keys by vote.
        first: First tokens that stay.
        recent: Most recent tokens that stay.
    """

    k: int = 64
    first: int = 4
    recent: int = 32

    name: ClassVar[str] = "token_select"
    scope: ClassVar = "causal"
    group: ClassVar = "layer"
    source: ClassVar[str] = "Wu et al. 2024, arXiv 2411.02886; pzs19/TokenSelect"

    def keep(self, view: View) -> Bool[Tensor, "q_pos k_pos"]:
        """First, recent and voted keys."""
        always = (view.keys < self.first) | (view.distance < self.recent)
        votes = view.pattern.sum(0)
        return top_keys(votes, self.k, view.visible.any(0) & ~always) | always

    @classmethod
    def sized(cls, keys: int, length: int) -> "TokenSelect":
        """Half by vote, an eighth first, the rest recent."""
        first = min(4, max(1, keys // 8))
        recent = max(1, keys // 2 - first)
        return cls(max(0, keys - first - recent), first, recent)
