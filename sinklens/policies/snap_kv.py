"""SnapKV: what the end of the prompt looks at stays."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.choose import top_keys
from sinklens.policies.view import View
from sinklens.policies.votes import PromptVotes


@dataclass(frozen=True)
class SnapKV(PromptVotes):
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

    name: ClassVar[str] = "snap_kv"
    source: ClassVar[str] = "Li et al. 2024, arXiv 2404.14469; FasterDecoding/SnapKV"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Everything for the prompt's rows; afterwards the chosen keys and the newer ones."""
        prompt = view.prompt or 0
        after = view.rows >= prompt
        voted = self.vote(view)
        kept = (~after)[:, None] | (view.keys >= prompt - self.window)
        kept = kept.expand_as(view.scores)
        if bool(after.any()) and voted:
            old = (view.keys >= 0) & (view.keys < prompt - self.window)
            votes = self.pooled(self.votes(view).masked_fill(~old, 0))
            chosen = top_keys(votes, self.capacity - self.window, old.expand_as(votes))
            kept = kept | (chosen[:, None] & after[:, None])
        return kept

    @classmethod
    def sized(cls, keys: int, length: int) -> "SnapKV":
        """A quarter of the budget votes, at most 32 rows."""
        return cls(keys, window=max(1, min(32, keys // 4)))
