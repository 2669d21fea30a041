"""Quest: pages of keys by an upper bound on their scores."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.blocks import key_blocks, spread_blocks
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class Quest(Policy):
    """Keeps the pages of keys that could hold the largest score, and the query's own page.

    Every page keeps the smallest and the largest value of each channel of its keys, m and x; the bound
    ``u = sum_c max(q_c m_c, q_c x_c)`` is at least as large as every score in the page.

    Args:
        page: Keys in a page.
        pages: Pages that a row reads besides its own.
        dense_layers: First layers that read everything.
    """

    page: int = 16
    pages: int = 16
    dense_layers: int = 2

    name: ClassVar[str] = "quest"
    scope: ClassVar = "causal"
    source: ClassVar[str] = "Tang et al. 2024, arXiv 2406.10774; as in PiotrNawrot/sparse-frontier"

    def bounds(self, view: View) -> Float[Tensor, "head q_pos page"]:
        """Upper bound on the scores of each page; a page's later keys, which a row cannot see, count as well."""
        query, key = view.query, view.key[:, view.keys >= 0]
        extra = -key.shape[1] % self.page
        low = torch.nn.functional.pad(key, (0, 0, 0, extra), value=torch.inf).unflatten(1, (-1, self.page)).amin(2)
        high = torch.nn.functional.pad(key, (0, 0, 0, extra), value=-torch.inf).unflatten(1, (-1, self.page)).amax(2)
        bound: Tensor = query.clamp(min=0) @ high.transpose(-1, -2) + query.clamp(max=0) @ low.transpose(-1, -2)
        return bound

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Pages by bound."""
        if view.layer < self.dense_layers:
            return view.visible
        _, seen, own = key_blocks(view, self.page, "max")
        bound = self.bounds(view)[..., : seen.shape[-1]]
        return spread_blocks(top_keys(bound, self.pages, seen & ~own) | own, view, self.page)

    @classmethod
    def sized(cls, keys: int, length: int) -> "Quest":
        """Pages of 16, or of a quarter of a small budget; every layer."""
        page = max(1, min(16, keys // 4))
        return cls(page, max(1, keys // page - 1), dense_layers=0)
