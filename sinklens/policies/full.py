"""Full attention: the rule that drops nothing."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class Full(Policy):
    """Every row reads every key that the model shows it: what all other rules are compared with."""

    name: ClassVar[str] = "full"
    scope: ClassVar = "causal"
    group: ClassVar = "model"
    evicts: ClassVar[bool] = True
    source: ClassVar[str] = "the model itself"

    def keep(self, view: View) -> Bool[Tensor, "q_pos k_pos"]:
        """Everything."""
        return torch.ones_like(view.distance, dtype=torch.bool)

    @classmethod
    def sized(cls, keys: int, length: int) -> "Full":
        """Full attention has every key, whatever the budget."""
        return cls()
