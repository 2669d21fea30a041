"""Recycled attention: a full step now and then chooses the keys for the steps that follow."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class Recycled(Policy):
    """Reads everything at every ``every``-th token, and between those what that token attended to most, and newer ones.

    One set per KV head: attention is averaged over the query heads that share it. A key dropped now can come back at
    the next full step.

    Args:
        k: Keys that are kept from a full step.
        every: Tokens from one full step to the next.
    """

    k: int = 64
    every: int = 50

    name: ClassVar[str] = "recycled"
    scope: ClassVar = "causal"
    group: ClassVar = "kv_group"
    positive: ClassVar = ("every",)
    source: ClassVar[str] = "Xu et al. 2024, arXiv 2411.05787 (RefreshKV; README only)"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Everything at full steps; afterwards their choice and what is newer."""
        weights = view.by_group(view.pattern).mean(1)
        seen = view.by_group(view.visible).any(1)
        full = (view.rows >= 0) & (view.rows % self.every == 0)
        chosen = top_keys(weights[:, full], self.k, seen[:, full])
        held = view.state.get("chosen")
        first = torch.zeros_like(seen[:, :1]) if held is None else self._wide(held, seen.shape[-1])[:, None]
        sets = torch.cat((first, chosen), 1)
        which = full.cumsum(0)
        began = view.rows.div(self.every, rounding_mode="floor") * self.every
        view.state["chosen"] = sets[:, int(which[-1])]
        newer = view.keys > began[:, None]
        return view.to_heads(sets[:, which] | newer) | full[:, None]

    @staticmethod
    def _wide(held: Bool[Tensor, "group k_pos"], width: int) -> Bool[Tensor, "group k_pos"]:
        return torch.nn.functional.pad(held, (0, max(0, width - held.shape[-1])))[:, :width]

    @classmethod
    def sized(cls, keys: int, length: int) -> "Recycled":
        """A full step every half budget, so that a row reads about the budget between them."""
        return cls(max(1, keys - keys // 4), max(2, keys // 2))
