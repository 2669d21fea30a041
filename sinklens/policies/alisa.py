"""ALISA: a window, and the keys that the latest rows attended to."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class Alisa(Policy):
    """Keeps recent tokens, and those that the rows just before attended to most, chosen anew at every step.

    Sum of the (full) attention of the last ``recent`` rows before the query, per key; the ``global_keys`` largest sums
    outside of the window stay. After notes on the paper; no code was published.

    Args:
        recent: Window, and rows whose attention counts.
        global_keys: Keys outside of the window.
    """

    recent: int = 32
    global_keys: int = 32

    name: ClassVar[str] = "alisa"
    scope: ClassVar = "causal"
    source: ClassVar[str] = "Zhao et al. 2024, arXiv 2403.17312 (from notes)"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Window and local sums."""
        held = view.state.get("rows", view.pattern[:, :0])
        held = torch.nn.functional.pad(held, (0, view.pattern.shape[-1] - held.shape[-1]))
        rows = torch.cat((held, view.pattern), 1)
        sums = torch.nn.functional.pad(rows.cumsum(1), (0, 0, 1, 0))
        last = torch.arange(
            held.shape[1], rows.shape[1], device=rows.device
        )  # rows before each query: [last - recent, last)
        local = sums[:, last] - sums[:, (last - self.recent).clamp(min=0)]
        view.state["rows"] = rows[:, max(0, rows.shape[1] - self.recent) :].clone()
        near = view.distance < self.recent
        return top_keys(local, self.global_keys, view.visible & ~near) | near

    @classmethod
    def sized(cls, keys: int, length: int) -> "Alisa":
        """Half and half."""
        return cls(max(1, keys - keys // 2), keys // 2)
