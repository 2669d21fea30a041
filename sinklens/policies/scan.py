"""A cache that drops one key after each token: the loop that eviction rules share."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class Evicting(Policy):
    """A cache of fixed size per head: every token is added, and once the cache is full one key is dropped for good.

    The live keys stand side by side, so a row costs O(size) and not O(text). A row reads the cache and itself, and the
    drop comes after it, as in the released loops.
    """

    evicts: ClassVar[bool] = True
    scope: ClassVar = "causal"

    @property
    @abstractmethod
    def size(self) -> int:
        """Keys that stay after a step."""

    @abstractmethod
    def update(
        self, score: Float[Tensor, "head slot"], weights: Float[Tensor, "head slot"], position: int
    ) -> Float[Tensor, "head slot"]:
        """New scores of the live keys after a row has paid its attention.

        Args:
            score: What they had; 0 for the newest.
            weights: The row's attention over the live keys.
            position: Of the row.
        """

    def spared(self, live: Int[Tensor, "head slot"], position: int) -> Bool[Tensor, "head slot"]:
        """Live keys that cannot be dropped after this row (default: none)."""
        return torch.zeros_like(live, dtype=torch.bool)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Run the cache over the rows."""
        heads, width, device = len(view.heads), self.size + 1, view.scores.device
        if "live" not in view.state:
            view.state["live"] = torch.full((heads, width), -1, device=device)
            view.state["score"] = torch.zeros(heads, width, device=device)
            view.state["free"] = torch.zeros(heads, 1, dtype=torch.long, device=device)
            view.state["count"] = 0
        live, score = view.state["live"].clone(), view.state["score"].clone()
        free, count = view.state["free"], view.state["count"]
        kept = torch.zeros_like(view.visible)
        first, last = int(view.keys[0]), len(view.keys) - 1
        for row, position in enumerate(view.rows.tolist()):
            if position < 0:  # padding before the text
                continue
            live.scatter_(1, free, position)
            score.scatter_(1, free, 0.0)
            columns = (live - first).clamp(0, last)
            there = (live >= 0) & (live >= first)
            seen = view.scores[:, row].gather(1, columns).masked_fill(~there, -math.inf)
            weights = torch.softmax(seen, -1).nan_to_num(0)
            score = self.update(score, weights, position).contiguous()
            # slots that hold nothing point at some column too, so that adding is right where writing is not
            kept[:, row] = seen.new_zeros(heads, last + 1).scatter_add_(1, columns, there.to(seen)) > 0
            count += 1
            if count <= self.size:
                free = torch.full_like(free, count)
                continue
            candidates = score.masked_fill((live < 0) | self.spared(live, position), math.inf)
            free = candidates.argmin(-1, keepdim=True)
        view.state.update(live=live, score=score, free=free, count=count)
        return kept


@dataclass(frozen=True)
class HeavyHitters(Evicting):
    """A cache of the keys with the largest sums of some score, beside the most recent ones, which are safe."""

    heavy: int = 32
    recent: int = 32

    @property
    def size(self) -> int:
        """Heavy hitters and recent tokens."""
        return self.heavy + self.recent

    def spared(self, live: Int[Tensor, "head slot"], position: int) -> Bool[Tensor, "head slot"]:
        """Recent tokens stay."""
        return live > position - self.recent
