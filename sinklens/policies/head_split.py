"""Head split: retrieval heads read everything, the others first and recent tokens (DuoAttention)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.interventions.heads import Heads, parse_heads
from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class HeadSplit(Policy):
    """Lets some heads read everything and gives the others a window with sinks.

    Args:
        full: Heads that read everything, such as the retrieval heads of a role file; in words ``L1H0+L2H3``, and for
            ``sinklens policy compare`` also ``head-roles.json:retrieval``.
        sinks: First tokens that the others keep.
        recent: Most recent tokens that they keep, the query's own included.
    """

    full: Heads = ()
    sinks: int = 4
    recent: int = 252

    name: ClassVar[str] = "head_split"
    scope: ClassVar = "causal"
    evicts: ClassVar[bool] = True
    positive: ClassVar = ("recent",)
    source: ClassVar[str] = "Xiao et al. 2025 (DuoAttention), arXiv 2410.10819"

    def __post_init__(self) -> None:
        super().__post_init__()
        full = self.full.replace("+", ",") if isinstance(self.full, str) else self.full
        object.__setattr__(self, "full", parse_heads(full) if full else ())

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Everything, or first and last tokens."""
        chosen = [self.full == "all" or (view.layer, head) in self.full for head in view.heads]
        full = torch.tensor(chosen, device=view.keys.device)[:, None, None]
        return full | (view.keys < self.sinks) | (view.distance < self.recent)

    @classmethod
    def sized(cls, keys: int, length: int) -> "HeadSplit":
        """Four sinks, or a quarter of a small budget, and the rest recent; no head is full."""
        sinks = min(4, keys // 4)
        return cls((), sinks, max(1, keys - sinks))
