"""Tri-shape: sink and window, and the last rows of the prompt in full."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class TriShape(Policy):
    """Keeps first and recent tokens while a prompt is read, but its last rows, and all after it, read everything.

    Args:
        sinks: First tokens that stay.
        recent: Most recent tokens, the query's own included.
        dense: Last rows of the prompt that read everything.
    """

    sinks: int = 4
    recent: int = 252
    dense: int = 100

    name: ClassVar[str] = "tri_shape"
    scope: ClassVar = "prompt"
    group: ClassVar = "model"
    positive: ClassVar = ("recent",)
    source: ClassVar[str] = "Li et al. 2025 (SCBench), arXiv 2412.10319; MInference's tri_mix.py"

    def keep(self, view: View) -> Bool[Tensor, "q_pos k_pos"]:
        """First and last tokens, or all."""
        dense = (view.rows >= (view.prompt or 0) - self.dense)[:, None]
        return (view.keys < self.sinks) | (view.distance < self.recent) | dense

    @classmethod
    def sized(cls, keys: int, length: int) -> "TriShape":
        """Four sinks, or a quarter of a small budget, and the rest recent; a quarter of the budget's rows are dense."""
        sinks = min(4, keys // 4)
        return cls(sinks, max(1, keys - sinks), min(100, keys // 4))
