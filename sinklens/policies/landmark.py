"""Landmark attention: a block is read through its last token."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.errors import InputError
from sinklens.policies.base import Policy
from sinklens.policies.blocks import in_blocks, spread_blocks
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class Landmark(Policy):
    """Shares attention to an earlier block among its tokens as its landmark, the last token, is attended to.

    A row's softmax runs over its own block's tokens and the landmarks of earlier blocks; what landmark b gets goes to
    the other tokens of b by a softmax of their own: ``p_i = p_landmark(b) softmax_b(s)_i``. Only the best ``blocks``
    landmarks are read. A model must have been trained with landmark tokens in these places for numbers to mean
    anything; here every ``block``-th token serves.

    Args:
        block: Tokens in a block, the landmark included.
        blocks: Earlier blocks that are read.
    """

    block: int = 51
    blocks: int = 4

    name: ClassVar[str] = "landmark"
    scope: ClassVar = "causal"
    positive: ClassVar = ("block",)
    untrained: ClassVar[bool] = True
    source: ClassVar[str] = "Mohtashami & Jaggi 2023, arXiv 2305.16300; epfml/landmark-attention (trained)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 2:
            raise InputError(f"Expected a block of at least 2 tokens, got {self}.")

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Own tokens as they are; others at ``s - logsumexp_b(s) + s_landmark``."""
        mark = (view.keys >= 0) & (view.keys % self.block == self.block - 1)
        numbers = view.rows.div(self.block, rounding_mode="floor")[:, None], view.keys.clamp(min=0) // self.block
        own = (numbers[0] == numbers[1]) & (view.keys >= 0)
        if bool(own[view.rows >= 0].logical_or(view.distance[view.rows >= 0] < 0).all()):
            return view.scores
        parts = in_blocks(view.scores.masked_fill(view.keys < 0, -math.inf), view, self.block)
        marks, total = parts[..., -1], parts[..., :-1].logsumexp(-1)
        blocks = torch.arange(parts.shape[-2], device=view.keys.device)
        there = (marks != -math.inf) & (total != -math.inf) & (blocks < numbers[0])
        chosen = top_keys(marks, self.blocks, there)
        move = torch.where(chosen, marks - total, -math.inf)[..., numbers[1].clamp(max=parts.shape[-2] - 1)]
        read = spread_blocks(chosen, view, self.block) & ~mark
        return torch.where(own, view.scores, (view.scores + move).masked_fill(~read, -math.inf))

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """What has any score left."""
        return view.visible

    @classmethod
    def sized(cls, keys: int, length: int) -> "Landmark":
        """Blocks of a quarter of the budget, three of them besides the own one."""
        return cls(max(2, keys // 4), 3 if keys >= 8 else max(0, keys // 2 - 1))
