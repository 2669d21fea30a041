"""D2O: heavy hitters, and what is dropped is merged into the key most like it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.merging import MergingCache
from sinklens.policies.view import View


@dataclass(frozen=True)
class D2O(Policy):
    """Keeps first, heavy and recent keys as H2O does, and merges a dropped one into its nearest survivor.

    After a step the key with the least attention so far goes, among those neither first nor recent. Let u be its
    largest cosine to a survivor's key. If u reaches a moving average of all u so far (weight ``pace`` on the newest),
    survivor c takes it in: ``k_c <- (e k_c + e^u k) / (e + e^u)``, values too; else it is lost. So a slot is a weighted
    mean of tokens, and each of its tokens gets its score plus the logarithm of its weight. Deviations: the weights are
    the paper's (the release takes half of ``k_c + u k``, which shrinks keys); one budget for all layers.

    Args:
        heavy: Heavy hitters.
        recent: Most recent tokens, the query's own included.
        sinks: First tokens that stay.
        pace: Weight of the newest u in the moving average.
        dense_first: First layers that read everything; the last layer does too, where this is above 0.
    """

    heavy: int = 32
    recent: int = 32
    sinks: int = 4
    pace: float = 0.5
    dense_first: int = 2

    name: ClassVar[str] = "d2o"
    scope: ClassVar = "causal"
    evicts: ClassVar[bool] = True
    positive: ClassVar = ("heavy", "recent")
    source: ClassVar[str] = "Wan et al. 2024, arXiv 2406.13035; AIoT-MLSys-Lab/D2O"

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Every token at its slot's score and the logarithm of its weight there; lost ones at ``-inf``."""
        if view.layer < self.dense_first or (self.dense_first and view.layer == view.n_layers - 1):
            return view.scores
        return MergingCache(self.sinks, self.heavy, self.recent, self.pace).scores(view)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """What stands in a slot."""
        return view.visible

    def entries(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "head q_pos"]:
        """Slots."""
        most = self.heavy + self.recent + 1 if "live" in view.state else len(view.keys)
        return (view.rows + 1).clamp(0, most).expand(len(view.heads), -1).float()

    def cached(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "kv_head q_pos"]:
        """Slots of all query heads of the KV head, each with merges of its own; one cache until a key is dropped."""
        plain = super().cached(view, kept)
        if "live" not in view.state:
            return plain
        each: Tensor = self.entries(view, kept).unflatten(0, (view.kv_heads, -1)).sum(1)
        return torch.where(view.rows <= self.heavy + self.recent, plain, each)

    @classmethod
    def sized(cls, keys: int, length: int) -> "D2O":
        """Half and half, with room for the query itself, in every layer."""
        half = max(1, (keys - 1) // 2)
        return cls(half, max(1, keys - 1 - half), min(4, half // 2), dense_first=0)
