"""Kept keys at the positions that they have among each other: what methods that number them anew share."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.policies.base import Policy
from sinklens.policies.rotary import frequencies, turned
from sinklens.policies.view import View

PAIRS = 1 << 17
"""Pairs of query and key that are turned at once."""


@dataclass(frozen=True)
class Renumbering(Policy):
    """A rule whose kept keys keep their positions, or are numbered anew without gaps, as its paper has it.

    Args:
        renumber: Whether keys are compared without their rotation and the kept ones numbered anew; for models with a
            rotary embedding.
    """

    renumber: bool = field(default=False, kw_only=True)

    def check(self, model: TransformerBridge) -> None:
        """The model's keys can be turned, where they have to be."""
        if self.renumber:
            frequencies(model, 0)

    @abstractmethod
    def choice(self, view: View) -> Bool[Tensor, "#head q_pos k_pos"] | Bool[Tensor, "q_pos k_pos"]:
        """Which keys each row reads, its own among them."""

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Scores at the new positions."""
        return renumbered(view, self.choice(view)) if self.renumber else view.scores

    def keep(self, view: View) -> Bool[Tensor, "#head q_pos k_pos"] | Bool[Tensor, "q_pos k_pos"]:
        """What has a score, or is chosen."""
        return view.visible if self.renumber else self.choice(view)


def renumbered(view: View, kept: Tensor) -> Float[Tensor, "head q_pos k_pos"]:
    """Scores of kept keys when these stand at 0, 1, 2 ... and the query at the last of them; ``-inf`` elsewhere.

    A key that n kept keys separate from the query is seen at the distance n, whatever was left out between them.

    Cost: O(d_head) for each kept pair that comes nearer.
    """
    kept = kept & view.visible
    number = kept.cumsum(-1)
    closer = view.distance - (number[..., -1:] - number)
    found = view.scores.masked_fill(~kept, -math.inf)
    query, key = view.query, view.key
    for pairs in (kept & (closer != 0)).nonzero().split(PAIRS):
        head, row, column = pairs.unbind(1)
        turn = -closer[head, row, column].float()
        products = turned(query[head, row], turn, view.frequencies) * key[head, column]
        found[head, row, column] = view.capped(products.sum(-1))
    return found


def unrotated(
    x: Float[Tensor, "head pos d_head"], position: Int[Tensor, " pos"], view: View
) -> Float[Tensor, "head pos d_head"]:
    """Queries or keys as they were before the rotary embedding."""
    return turned(x, -position.float(), view.frequencies)
