"""Vertical-slash: some columns and some diagonals, chosen by the last rows of the prompt (MInference)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.choose import top_keys
from sinklens.policies.lines import columns_and_diagonals
from sinklens.policies.view import View


@dataclass(frozen=True)
class VerticalSlash(Policy):
    """Keeps the columns and the diagonals that the last rows of the prompt attend to most, for all of its rows.

    ``M[t, i] = i in V or t - i in D``; V: the ``columns`` largest column sums of the attention of the last ``voters``
    rows, the first ``first`` forced in; D: the ``diagonals`` largest sums along diagonals, the nearest ``recent``
    forced in. Rows after the prompt read everything. The choice looks ahead, so score only rows after the prompt; the
    rule is often called causal and is not. Released kernels round diagonals to tiles of 64, and so keep more.

    Args:
        columns: Columns a head reads.
        diagonals: Diagonals a head reads.
        voters: Last rows of the prompt that choose.
        first: First tokens that always stay.
        recent: Nearest diagonals that always stay.
    """

    columns: int = 1000
    diagonals: int = 6096
    voters: int = 64
    first: int = 30
    recent: int = 100

    name: ClassVar[str] = "vertical_slash"
    scope: ClassVar = "prompt"
    positive: ClassVar = ("voters",)
    source: ClassVar[str] = "Jiang et al. 2024 (MInference), arXiv 2407.02490; minference_forward.py"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Columns and diagonals for the prompt's rows."""
        prompt = view.prompt or 0
        after = (view.rows >= prompt)[:, None]
        if bool(after.all()):
            return torch.ones_like(view.visible)
        if view.first_row == 0 or "columns" not in view.state:
            view.state["columns"], view.state["slashes"] = self._lines(view.whole, prompt)
        kept_columns, kept_slashes = view.state["columns"], view.state["slashes"]
        distance = view.distance.clamp(0, prompt - 1)
        kept: Tensor = kept_columns[:, None, : len(view.keys)] | kept_slashes[:, distance] | after
        return kept

    def _lines(self, view: View, prompt: int) -> tuple[Bool[Tensor, "head k_pos"], Bool[Tensor, "head distance"]]:
        start = max(0, prompt - self.voters)
        pattern = view.scores_of(start, prompt).softmax(-1).nan_to_num(0)
        rows = torch.arange(start, prompt, device=view.keys.device)
        vertical, slash = columns_and_diagonals(pattern, rows, view.keys, prompt)
        vertical = vertical.masked_fill((view.keys >= 0) & (view.keys < self.first), torch.inf)
        slash[:, : self.recent] = torch.inf
        real = view.is_text.expand_as(vertical)
        everywhere = torch.ones_like(slash, dtype=torch.bool)
        return top_keys(vertical, self.columns, real), top_keys(slash, self.diagonals, everywhere)

    @classmethod
    def sized(cls, keys: int, length: int) -> "VerticalSlash":
        """Half of the budget for columns and half for diagonals, or all of a text; an eighth of each is forced."""
        half = max(1, keys // 2 if keys < length else keys)
        return cls(half, half, min(64, max(1, length // 8)), max(1, half // 8), max(1, half // 8))
