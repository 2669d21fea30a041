"""SpAtten: tokens that little attention has reached are gone from all later layers."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class SpAtten(Policy):
    """Prunes tokens in a cascade: a token dropped at one layer is not read in any later one.

    Importance = attention probability summed over heads, over the rows so far and over the layers before; the ``k``
    most important tokens stay, and the query's own. One set for all heads of a layer.

    Deviation: the paper sums over all layers of earlier steps, which would need one forward pass a token; here a layer
    knows the layers before it. Head pruning and low-bit values are left out. The released port does something else
    (scores before the softmax, per head, no cascade).

    Args:
        k: Tokens that stay.
    """

    k: int = 64

    name: ClassVar[str] = "sp_atten"
    scope: ClassVar = "causal"
    group: ClassVar = "layer"
    source: ClassVar[str] = "Wang et al. 2021, arXiv 2012.09852"

    def keep(self, view: View) -> Bool[Tensor, "q_pos k_pos"]:
        """Tokens that are left at this layer.

        Cost: keeps what layers leave to the next, O(pos pos) memory.
        """
        seen, own = view.visible.any(0), view.distance == 0
        importance, alive = view.shared.get("importance"), view.shared.get("alive", view.distance >= 0)
        read = seen
        if importance is not None:
            read = top_keys(importance, self.k, alive & seen & ~own) | own
        weights = torch.softmax(view.scores.masked_fill(~read, -torch.inf), -1).nan_to_num(0).sum(0)
        held = view.state.get("sum", weights.new_zeros(0))
        sums = weights.cumsum(0) + torch.nn.functional.pad(held, (0, weights.shape[-1] - held.shape[-1]))
        view.state["sum"] = sums[-1].clone()
        view.shared["importance"] = sums if importance is None else importance + sums
        view.shared["alive"] = read | alive & ~seen  # what a window hides here a later layer may still read
        return read

    @classmethod
    def sized(cls, keys: int, length: int) -> "SpAtten":
        """The budget, with room for the query itself."""
        return cls(max(1, keys - 1))
