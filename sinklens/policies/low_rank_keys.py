"""Low-rank keys: keys squeezed into the few directions that they use most (ShadowKV, TransMLA)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.attention.kernel import AttentionCall
from sinklens.interventions.positions import Positions
from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class LowRankKeys(Policy):
    """Replaces the keys of each KV head by their projection on their own ``rank`` strongest directions.

    The directions are those of all keys of the text (singular value decomposition), so a row's keys depend on later
    ones: scope global. ShadowKV and TransMLA decompose keys *before* the rotary embedding, where they need fewer
    directions; here it is done after it, so this is a lower bound of what they keep.

    Args:
        rank: Directions that stay; ``d_head`` or more changes nothing.
    """

    rank: int = 16

    name: ClassVar[str] = "low_rank_keys"
    scope: ClassVar = "global"
    group: ClassVar = "model"
    evicts: ClassVar[bool] = True
    positive: ClassVar = ("rank",)
    source: ClassVar[str] = "ShadowKV, arXiv 2410.21465; TransMLA, arXiv 2502.07864 (deviation: after rotation)"

    def change_call(self, call: AttentionCall, positions: Positions) -> AttentionCall:
        """Keys on their strongest directions."""
        if self.rank >= call.key.shape[-1]:
            return call
        real = positions.is_text(call.shape)[:, None, :, None]
        directions = torch.linalg.svd(call.key.float() * real, full_matrices=False)[2][..., : self.rank, :]
        return replace(call, key=(call.key.float() @ directions.mT @ directions).to(call.key.dtype))

    def bytes_per_key(self, d_head: int, element_size: int) -> float:
        """``rank`` numbers for the key and the value as it is; the directions, once a head, are not counted."""
        return (min(self.rank, d_head) + d_head) * element_size

    def keep(self, view: View) -> Bool[Tensor, "q_pos k_pos"]:
        """Everything."""
        return torch.ones_like(view.distance, dtype=torch.bool)
