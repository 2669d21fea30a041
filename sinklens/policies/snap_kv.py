"""SnapKV: what the end of the prompt looks at stays."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class SnapKV(Policy):
    """Drops, once the prompt is read, all but the keys that its last rows attend to most.

    ``vote_i`` = attention of the last ``window`` rows of the prompt to key i, summed, then averaged over ``pool``
    neighbours; the ``capacity - window`` largest votes stay, and the window itself; whatever comes later is added. Per
    query head. Rows of the prompt read everything, so score only rows after it.

    Args:
        capacity: Keys of the prompt that stay.
        window: Last rows of the prompt that vote.
        pool: Width of the average, an odd number.
    """

    capacity: int = 128
    window: int = 32
    pool: int = 5

    name: ClassVar[str] = "snap_kv"
    scope: ClassVar = "prompt"
    evicts: ClassVar[bool] = True
    source: ClassVar[str] = "Li et al. 2024, arXiv 2404.14469; FasterDecoding/SnapKV"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Everything for the prompt's rows; afterwards the chosen keys and the newer ones."""
        prompt = view.prompt or 0
        voters = (view.rows >= prompt - self.window) & (view.rows < prompt)
        after = view.rows >= prompt
        if bool(voters.any()):
            votes = (view.pattern * voters[:, None]).sum(1)
            held = view.state.get("votes", votes.new_zeros(len(view.heads), 0))
            width = max(votes.shape[-1], held.shape[-1])
            pad = torch.nn.functional.pad
            view.state["votes"] = pad(held, (0, width - held.shape[-1])) + pad(votes, (0, width - votes.shape[-1]))
            view.state["first"] = int(view.keys[0])
        kept = (~after)[:, None] | (view.keys >= prompt - self.window)
        kept = kept.expand_as(view.scores)
        if bool(after.any()) and "votes" in view.state:
            kept = kept | (self._chosen(view, prompt)[:, None] & after[:, None])
        return kept

    def _chosen(self, view: View, prompt: int) -> Bool[Tensor, "head k_pos"]:
        votes: Tensor = view.state["votes"]
        at = torch.arange(votes.shape[-1], device=votes.device) + view.state["first"]
        old = (at >= 0) & (at < prompt - self.window)
        votes = votes.masked_fill(~old, 0)
        pooled = torch.nn.functional.avg_pool1d(votes[None], self.pool, 1, self.pool // 2, count_include_pad=True)[0]
        chosen = top_keys(pooled, self.capacity - self.window, old.expand_as(votes))
        columns = view.keys - view.state["first"]
        inside = (columns >= 0) & (columns < votes.shape[-1])
        kept: Tensor = chosen[:, columns.clamp(0, votes.shape[-1] - 1)] & inside
        return kept

    @classmethod
    def sized(cls, keys: int, length: int) -> "SnapKV":
        """A quarter of the budget votes, at most 32 rows."""
        return cls(keys, max(1, min(32, keys // 4)))
