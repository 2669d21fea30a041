"""Core context aware attention: far groups of tokens are read as one core token each."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class CCA(Policy):
    """Reads recent tokens one by one and each group of tokens before them as one core token.

    A group's core key and value are its tokens' weighted by ``a``, the attention that the group's last token pays
    within it. So ``q . core = sum_i a_i s_i``, and token i of the group gets the weight ``a_i exp(q . core)``. Exact
    where scores are plain products. The window begins where a group does. Published quality needs fine-tuning.

    Args:
        group_size: Tokens in a group.
        recent: Least number of tokens that are read one by one, the query's own included.
    """

    group_size: int = 16
    recent: int = 1024

    name: ClassVar[str] = "cca"
    scope: ClassVar = "causal"
    positive: ClassVar = ("group_size", "recent")
    untrained: ClassVar[bool] = True
    source: ClassVar[str] = "Chen et al. 2025, arXiv 2412.12465 (from notes; chenyaofo/CCA-Attention holds no code)"

    def _far(self, view: View) -> Bool[Tensor, "q_pos k_pos"]:
        begins = (view.rows - self.recent + 1).div(self.group_size, rounding_mode="floor") * self.group_size
        return (view.keys >= 0) & (view.keys < begins[:, None])

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Far tokens at ``q . core + log a``."""
        share, number = self._shares(view), view.keys.clamp(min=0) // self.group_size
        far = self._far(view) & view.visible
        if not bool(far.any()):
            return view.scores
        weighted = torch.where(far, share.exp()[:, None] * view.scores, 0)
        sums = view.scores.new_zeros(*view.scores.shape[:2], int(number.max()) + 1)
        core = sums.scatter_add_(-1, number.expand_as(view.scores), weighted)[..., number]
        return torch.where(far, core + share[:, None], view.scores)

    def _shares(self, view: View) -> Float[Tensor, "head k_pos"]:
        """Logarithm of every token's weight in its group; ``-inf`` before the group is complete."""
        held = view.state.get("share", view.scores[:, 0, :0])
        held = torch.nn.functional.pad(held, (0, len(view.keys) - held.shape[-1]), value=-math.inf)
        last = (view.rows >= 0) & (view.rows % self.group_size == self.group_size - 1)
        if bool(last.any()):
            own = view.keys.div(self.group_size, rounding_mode="floor") == view.rows[last, None] // self.group_size
            within = view.scores[:, last].masked_fill(~own, -math.inf).log_softmax(-1)
            within = within.nan_to_num(nan=-math.inf, neginf=-math.inf)  # a group that stands in padding
            held = torch.maximum(held, within.amax(1))
        view.state["share"] = held
        return held

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Everything: far tokens stand in their cores."""
        return view.visible

    def as_they_are(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Bool[Tensor, "head q_pos k_pos"]:
        """Recent tokens."""
        return kept & ~self._far(view)

    def entries(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "head q_pos"]:
        """Recent tokens, and one for each group before them."""
        far = kept & self._far(view)
        return (kept & ~far).sum(-1) + far.sum(-1).float() / self.group_size

    def cached(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "kv_head q_pos"]:
        """Recent tokens once, and cores of every query head, which weights its groups by its own attention."""
        far = self._far(view) & kept
        recent = (kept & ~far).unflatten(0, (view.kv_heads, -1)).any(1).sum(-1)
        cores: Tensor = far.unflatten(0, (view.kv_heads, -1)).sum((1, -1)).float() / self.group_size
        held: Tensor = recent + cores
        return held
