"""FlexPrefill: as many columns and diagonals, or blocks, as it takes to hold a share of the attention."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.interventions.fields import parse_number
from sinklens.policies.base import Policy
from sinklens.policies.blocks import key_blocks, spread_blocks
from sinklens.policies.choose import covering_keys
from sinklens.policies.lines import columns_and_diagonals
from sinklens.policies.view import View


@dataclass(frozen=True)
class FlexPrefill(Policy):
    """Keeps, per head, the fewest columns and diagonals that hold ``share`` of what the prompt's last rows attend to.

    Where the mean query of those rows predicts their attention by blocks well (square root of the Jensen-Shannon
    divergence below ``tau``), the method switches that head to blocks chosen for every block of queries; the head then
    keeps, for each row, the blocks that hold ``share`` of the *estimated* attention. First block and nearest diagonal
    always stay. Rows after the prompt read everything; score only those.

    Deviation: the estimate is covered row by row, not over all blocks of queries flattened, so that rows do not
    compete; no least budget.

    Args:
        share: Attention to hold.
        tau: Largest divergence at which blocks are used.
        block: Queries at the end of the prompt that choose, and keys in a block.
    """

    share: float = 0.9
    tau: float = 0.1
    block: int = 128

    name: ClassVar[str] = "flex_prefill"
    scope: ClassVar = "prompt"
    positive: ClassVar = ("block",)
    source: ClassVar[str] = "Lai et al. 2025, arXiv 2502.20766; ByteDance-Seed/FlexPrefill"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_number(self.share, "share", 0, 1, above=True)
        parse_number(self.tau, "tau", 0)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Columns and diagonals, or blocks, by head."""
        prompt, whole = view.prompt or 0, view.whole
        after = (view.rows >= prompt)[:, None]
        if bool(after.all()):
            return torch.ones_like(view.visible)
        start = max(0, prompt - self.block)
        scores = whole.scores_of(start, prompt)
        pattern = scores.softmax(-1).nan_to_num(0)
        rows = torch.arange(start, prompt, device=view.keys.device)
        vertical, slash = columns_and_diagonals(pattern, rows, whole.keys, prompt)
        real = whole.is_text.expand_as(vertical)
        kept_columns = covering_keys(vertical, self.share, real) | whole.is_text & (whole.keys < self.block)
        kept_slashes = covering_keys(slash, self.share, torch.ones_like(slash, dtype=torch.bool))
        kept_slashes[:, 0] = True
        distance = view.distance.clamp(0, prompt - 1)
        by_line = kept_columns[:, None, : len(view.keys)] | kept_slashes[:, distance]
        by_block = self._blocks(view)
        blocky = self._divergence(pattern, scores, whole.keys) < self.tau
        return torch.where(blocky[:, None, None], by_block, by_line) | after

    def _divergence(
        self, pattern: Float[Tensor, "head rows k_pos"], scores: Float[Tensor, "head rows k_pos"], keys: Tensor
    ) -> Float[Tensor, " head"]:
        """Square root of the Jensen-Shannon divergence between estimated and true attention by key block."""
        number = keys.clamp(min=0) // self.block
        member = torch.nn.functional.one_hot(number, int(number.max()) + 1).to(pattern) * (keys >= 0)[:, None]
        true = (pattern.mean(1) @ member).clamp(min=1e-12)
        there = scores != -math.inf
        total = torch.einsum("hqk,kb->hb", scores.masked_fill(~there, 0), member)
        count = torch.einsum("hqk,kb->hb", there.to(pattern), member)
        guess = torch.softmax((total / count.clamp(min=1)).masked_fill(count == 0, -math.inf), -1).clamp(min=1e-12)
        true = true / true.sum(-1, keepdim=True)
        middle = (true + guess) / 2
        terms = true * (true / middle).log() + guess * (guess / middle).log()
        return (terms.sum(-1) / 2).clamp(min=0).sqrt()

    def _blocks(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        score, seen, own = key_blocks(view, self.block, "mean")
        first = torch.zeros_like(own)
        first[:, 0] = True
        chosen = covering_keys(score.softmax(-1).nan_to_num(0), self.share, seen)
        return spread_blocks(chosen | own | first, view, self.block)
