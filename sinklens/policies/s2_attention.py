"""S2-Attention: each head reads a window of blocks and every n-th block, shifted from head to head."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class S2Attention(Policy):
    """Shards the context over heads: together they cover it, and no first block is forced, so most heads lose the sink.

    Key block K stays for KV head r and query block Q if ``Q - K < local_blocks`` or
    ``(K + r step + offset) mod stride = 0`` with ``step = max(1, stride // heads)``.

    Args:
        block: Tokens in a block.
        local_blocks: Nearest blocks that stay.
        stride: Every how many blocks one stays.
        offset: Shift of all heads.
        dense_heads: Last KV heads that read everything.
    """

    block: int = 64
    local_blocks: int = 4
    stride: int = 4
    offset: int = 0
    dense_heads: int = 0

    name: ClassVar[str] = "s2_attention"
    scope: ClassVar = "causal"
    group: ClassVar = "kv_group"
    evicts: ClassVar[bool] = True
    positive: ClassVar = ("block", "stride")
    source: ClassVar[str] = "Lin et al. 2024, arXiv 2407.17678; linxihui/dkernel (published quality needs training)"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """By block and head."""
        key_block = view.keys.div(self.block, rounding_mode="floor")
        near = view.rows.div(self.block, rounding_mode="floor")[:, None] - key_block < self.local_blocks
        kv_head = torch.tensor(view.heads, device=view.keys.device) // (view.n_heads // view.kv_heads)
        step = max(1, self.stride // view.kv_heads)
        striped = (key_block + kv_head[:, None] * step + self.offset) % self.stride == 0
        dense = kv_head >= view.kv_heads - self.dense_heads
        return near[None] | striped[:, None] | dense[:, None, None]
