"""Block-sparse attention: pairs of query and key blocks by their mean score (MInference, DHSA)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.blocks import key_blocks, spread_blocks
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class BlockSparse(Policy):
    """Keeps, for each block of queries, the blocks of keys that its mean query scores highest, and its own.

    Mean of the scores between two blocks = score of mean query and mean key. MInference: ``query_block=64``,
    ``key_block=64``, 100 blocks; DHSA: 128, 32 and an eighth of the blocks, there without a causal mask on the block
    scores (:attr:`wasteful`), so that early rows spend their budget on the future.

    Args:
        query_block: Queries that choose together.
        key_block: Keys in a block.
        blocks: Blocks that a block of queries reads besides its own.
        wasteful: Let blocks of the future compete, as the released DHSA does; what wins there is lost.
    """

    query_block: int = 64
    key_block: int = 64
    blocks: int = 4
    wasteful: bool = False

    name: ClassVar[str] = "block_sparse"
    scope: ClassVar = "block"
    positive: ClassVar = ("query_block", "key_block")
    source: ClassVar[str] = (
        "Jiang et al. 2024 (MInference), arXiv 2407.02490; DHSA, arXiv 2510.24606 (xiongsiheng/DHSA)"
    )

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Blocks by mean score over the rows of a query block."""
        score, seen, own = key_blocks(view, self.key_block, "mean")
        number = view.rows.div(self.query_block, rounding_mode="floor")
        _, group = torch.unique_consecutive(number, return_inverse=True)
        count = int(group.max()) + 1
        member = (torch.nn.functional.one_hot(group, count) * view.rows_of_text[:, None]).to(score)
        totals = torch.einsum("hqb,qg->hgb", score.masked_fill(~seen, 0), member)
        counts = torch.einsum("hqb,qg->hgb", seen.to(score), member)
        mean = (totals / counts.clamp(min=1)).masked_fill(counts == 0, 0.0 if self.wasteful else -math.inf)
        among = (counts > 0) | self.wasteful
        own_group = torch.einsum("qb,qg->gb", own.to(score), member) > 0
        chosen = top_keys(mean, self.blocks, among & ~own_group) | own_group
        return spread_blocks(chosen[:, group] | own, view, self.key_block)

    @classmethod
    def sized(cls, keys: int, length: int) -> "BlockSparse":
        """Blocks of 16, or of a quarter of a small budget."""
        block = max(1, min(16, keys // 4))
        return cls(block, block, max(1, keys // block - 1))
