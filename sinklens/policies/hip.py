"""HiP: blocks of keys found by halving, one key standing for each."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.errors import InputError
from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class HiP(Policy):
    """Keeps, for each block of queries, the blocks of keys that a search by halving finds, and first and recent keys.

    The keys so far are cut into at most ``2 budget / block`` groups; a group's score is the largest score of its middle
    key over every second query; the better half of the groups is cut in two, and so on down to single blocks. Written
    from the paper's description: which key stands for a group differs between its versions, and its positions are not
    numbered anew.

    Args:
        budget: Keys in the blocks that are found.
        block: Keys in a block.
        query_block: Queries that search together.
        sinks: First tokens that are read.
        recent: Most recent tokens that are read.
        dense_layers: First layers that read everything.
    """

    budget: int = 2048
    block: int = 8
    query_block: int = 64
    sinks: int = 256
    recent: int = 1024
    dense_layers: int = 3

    name: ClassVar[str] = "hip"
    scope: ClassVar = "block"
    positive: ClassVar = ("budget", "block", "query_block")
    source: ClassVar[str] = "Lee et al. 2024, arXiv 2406.09827; InfiniteHiP, arXiv 2502.08910"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget < self.block:
            raise InputError(f"Expected a budget of at least one block, got {self}.")

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Found blocks, first and recent keys."""
        near = (view.keys < self.sinks) | (view.distance < self.recent)
        if view.layer < self.dense_layers:
            return view.visible
        kept = near.expand_as(view.scores).clone()
        start = int((view.keys < 0).sum())
        for number in torch.unique(view.rows[view.rows_of_text].div(self.query_block, rounding_mode="floor")):
            rows = (view.rows.div(self.query_block, rounding_mode="floor") == number) & view.rows_of_text
            seen = int(view.rows[rows].max()) + 1
            score = view.scores[:, rows][:, ::2, start : start + seen].amax(1)
            blocks = self._search(score, seen) // self.block
            found = torch.zeros(len(score), -(-seen // self.block) + 1, dtype=torch.bool, device=score.device)
            found = found.scatter_(1, blocks.clamp(max=found.shape[1] - 1), True)[:, :-1]
            kept[:, rows, start : start + seen] |= found.repeat_interleave(self.block, 1)[:, None, :seen]
        return kept

    def _search(self, score: Tensor, seen: int) -> Tensor:
        """First keys of the blocks that are left, ``[head block]``."""
        many = max(1, self.budget // self.block)
        size = self.block * 2 ** max(0, math.ceil(math.log2(seen / (2 * many * self.block))))
        starts = torch.arange(0, seen, size, device=score.device).expand(len(score), -1)
        while True:
            there = score.gather(1, (starts + size // 2).clamp(max=seen - 1))
            best = there.masked_fill(starts >= seen, -math.inf).topk(min(many, starts.shape[1]), -1).indices
            starts = starts.gather(1, best)
            if size == self.block:
                return starts
            size //= 2
            starts = torch.cat((starts, starts + size), 1)

    @classmethod
    def sized(cls, keys: int, length: int) -> "HiP":
        """An eighth first, an eighth recent, the rest (or all of a text) in blocks of 4, found by 16 queries."""
        part = max(1, keys // 8)
        return cls(max(2, keys - 2 * part if keys < length else keys), 4 if keys >= 16 else 2, 16, part, part, 0)
