"""PowerAttention: a window, the first block, and blocks whose distance is a power of two."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class PowerAttention(Policy):
    """Keeps blocks at distances 1, 2, 4, 8 ..., so that news of any token arrives within log2(n) layers.

    A key block at block distance D stays if D is a power of two, if ``D < window_blocks``, or if it is the first.

    Args:
        block: Tokens in a block.
        window_blocks: Nearest blocks that all stay, the query's own included.
    """

    block: int = 256
    window_blocks: int = 5

    name: ClassVar[str] = "power_attention"
    scope: ClassVar = "causal"
    group: ClassVar = "model"
    positive: ClassVar = ("block",)
    source: ClassVar[str] = "Chen et al. 2025, arXiv 2503.03588 (no code; published quality needs training)"

    def keep(self, view: View) -> Bool[Tensor, "q_pos k_pos"]:
        """By block distance."""
        key_block = view.keys.div(self.block, rounding_mode="floor")
        far = view.rows.div(self.block, rounding_mode="floor")[:, None] - key_block
        power = (far > 0) & ((far & (far - 1)) == 0)
        return power | (far < self.window_blocks) | (key_block == 0)
