"""Block top-k: the blocks whose mean key fits the query best (SSA, MoBA)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.blocks import key_blocks, spread_blocks
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class BlockTopK(Policy):
    """Keeps the blocks of keys with the largest mean score, and the query's own block.

    The mean of the scores of a block is the score of its mean key (without soft cap and bias). The inference rule of
    SSA (16 blocks of 16) and MoBA; those models are trained with it.

    Args:
        block: Tokens in a block.
        blocks: Blocks that a row reads besides its own.
    """

    block: int = 16
    blocks: int = 16

    name: ClassVar[str] = "block_top_k"
    scope: ClassVar = "causal"
    positive: ClassVar = ("block",)
    source: ClassVar[str] = "SSA, arXiv 2511.20102 (zhenyi4/ssa); MoBA, arXiv 2502.13189"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Whole blocks by mean score."""
        score, seen, own = key_blocks(view, self.block, "mean")
        return spread_blocks(top_keys(score, self.blocks, seen & ~own) | own, view, self.block)

    @classmethod
    def sized(cls, keys: int, length: int) -> "BlockTopK":
        """Blocks of 16, or of a quarter of a small budget."""
        block = max(1, min(16, keys // 4))
        return cls(block, max(1, keys // block - 1))
