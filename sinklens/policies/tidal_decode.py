"""TidalDecode: two layers choose the keys, the others read the same ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class TidalDecode(Policy):
    """Keeps in most layers the keys that scored highest, per head, in the last layer that looked at all of them.

    Layers below ``first`` read everything; layer ``first`` and the correction layer read everything and note the ``k``
    keys with the largest scores; the layers between and after read what was noted, head by head of the same number.

    Args:
        k: Keys a row reads.
        first: Layer that chooses first.
        correction: Layer that chooses anew; default: 13 of 32 of the depth.
        in_prompt: Whether the rows of the prompt are cut as well; the method reads a prompt in full.
    """

    k: int = 256
    first: int = 2
    correction: int | None = None
    in_prompt: bool = False

    name: ClassVar[str] = "tidal_decode"
    scope: ClassVar = "causal"
    source: ClassVar[str] = "Yang et al. 2024, arXiv 2410.05076; DerrickYLJ/TidalDecode"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Everything, or what was noted."""
        correction = round(view.n_layers * 13 / 32) if self.correction is None else self.correction
        if view.layer in (self.first, correction):
            view.shared["keys"] = chosen_keys(view, self.k)
        if view.layer <= self.first or view.layer == correction or "keys" not in view.shared:
            return torch.ones_like(view.visible)
        kept = at_positions(view.shared["keys"], view)
        return kept if self.in_prompt else kept | (view.rows < (view.prompt or 0))[:, None]

    @classmethod
    def sized(cls, keys: int, length: int) -> "TidalDecode":
        """The budget itself, for the prompt's rows as well."""
        return cls(keys, in_prompt=True)


def chosen_keys(view: View, count: int) -> Int[Tensor, "head q_pos chosen"]:
    """Positions of the keys with the largest scores in every row; -1 where a row sees fewer."""
    count = min(count, len(view.keys))
    scores, index = view.scores.topk(count, -1)
    return view.keys[index].masked_fill(scores == -torch.inf, -1)


def at_positions(positions: Int[Tensor, "head q_pos chosen"], view: View) -> Bool[Tensor, "head q_pos k_pos"]:
    """The keys at these positions."""
    columns = positions - int(view.keys[0])
    inside = (positions >= 0) & (columns >= 0) & (columns < len(view.keys))
    hits = torch.zeros(view.scores.shape, device=view.scores.device)
    return hits.scatter_add_(-1, columns.clamp(0, len(view.keys) - 1), inside.to(hits)) > 0
