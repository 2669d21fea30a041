"""Shared patterns: layers of a block read with the attention of its first (EchoAtt)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class SharedPattern(Policy):
    """Gives the layers of a block the attention weights of its first layer, and lets them keep their own values.

    Nothing is dropped: the rule tells how alike layers attend. Published quality needs distillation.

    Args:
        first: First layer of the first block.
        last: Layers from here on keep their own attention; default: all but the last layer share.
        size: Layers in a block; 1 changes nothing.
    """

    first: int = 1
    last: int | None = None
    size: int = 2

    name: ClassVar[str] = "shared_pattern"
    scope: ClassVar = "causal"
    positive: ClassVar = ("size",)
    source: ClassVar[str] = "Rajabzadeh et al. 2024 (EchoAtt), arXiv 2409.14595 (no code)"

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Scores of the block's first layer.

        Cost: keeps one layer's scores, O(head pos pos) memory.
        """
        stop = view.n_layers - 1 if self.last is None else self.last
        if not self.first <= view.layer < stop:
            return view.scores
        if (view.layer - self.first) % self.size == 0:
            view.shared["scores"] = view.scores.clone()
            return view.scores
        held: Tensor = view.shared["scores"]
        return held if held.shape == view.scores.shape else view.scores

    def keep(self, view: View) -> Bool[Tensor, "q_pos k_pos"]:
        """Everything."""
        return torch.ones_like(view.distance, dtype=torch.bool)
