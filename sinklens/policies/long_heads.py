"""LongHeads: each head reads its first, its last and its best chunks."""

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
class LongHeads(Policy):
    """Keeps the first chunk, the query's own and the one before, and the chunks that fit the query best.

    Deviation: a chunk is judged by its mean key; the method reads a key out of the chunk by attention, un-rotated, and
    numbers the kept chunks anew.

    Args:
        chunk: Tokens in a chunk.
        chunks: Chunks that a row reads, first and last ones included.
    """

    chunk: int = 256
    chunks: int = 16

    name: ClassVar[str] = "long_heads"
    scope: ClassVar = "causal"
    source: ClassVar[str] = "Lu et al. 2024, arXiv 2402.10685; LuLuLuyi/LongHeads"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Whole chunks."""
        score, seen, own = key_blocks(view, self.chunk, "mean")
        always = own | torch.nn.functional.pad(own[:, 1:], (0, 1))
        always[:, 0] = True
        return spread_blocks(top_keys(score, self.chunks - 3, seen & ~always) | always, view, self.chunk)

    @classmethod
    def sized(cls, keys: int, length: int) -> "LongHeads":
        """Chunks of an eighth of the budget."""
        return cls(max(1, keys // 8), 8)
