"""LongGen: full attention in the middle layers, first and recent tokens in the others."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.interventions.fields import parse_number
from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class LongGen(Policy):
    """Reads everything in a band of layers, and first and recent tokens in the layers below and above it.

    Slide the band to see at which depth a model needs its context.

    Args:
        sinks: First tokens that stay.
        recent: Most recent tokens, the query's own included.
        from_depth: Where the full band begins, as a share of the layers.
        to_depth: Where it ends.
    """

    sinks: int = 4
    recent: int = 252
    from_depth: float = 1 / 3
    to_depth: float = 2 / 3

    name: ClassVar[str] = "long_gen"
    scope: ClassVar = "causal"
    group: ClassVar = "model"
    evicts: ClassVar[bool] = True
    positive: ClassVar = ("recent",)
    source: ClassVar[str] = "Ge et al. 2024, arXiv 2410.01485 (no code; published quality needs training)"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_number(self.from_depth, "from_depth", 0, 1)
        parse_number(self.to_depth, "to_depth", self.from_depth, 1)

    def keep(self, view: View) -> Bool[Tensor, "q_pos k_pos"]:
        """Everything inside the band."""
        if self.from_depth * view.n_layers <= view.layer < self.to_depth * view.n_layers:
            return torch.ones_like(view.distance, dtype=torch.bool)
        return (view.keys < self.sinks) | (view.distance < self.recent)

    @classmethod
    def sized(cls, keys: int, length: int) -> "LongGen":
        """Four sinks, or a quarter of a small budget, and the rest recent; the band comes on top."""
        sinks = min(4, keys // 4)
        return cls(sinks, max(1, keys - sinks))
