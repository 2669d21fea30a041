"""Quest: pages of keys by an upper bound on their scores."""

import math
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
    positive: ClassVar = ("page",)
    source: ClassVar[str] = "Tang et al. 2024, arXiv 2406.10774; as in PiotrNawrot/sparse-frontier"

    def bounds(self, view: View) -> Float[Tensor, "head q_pos page"]:
        """Upper bound on the scores of each page; a page's later keys, which a row cannot see, count as well."""
        low, high = view.the_same(
            ("pages", self.page, view.heads), lambda: self._ends(view.all_keys, int(view.keys[0]))
        )
        pages = slice(-(-(int(view.keys[-1]) + 1) // self.page))
        query = view.query
        bound: Tensor = query.clamp(min=0) @ high[:, pages].mT + query.clamp(max=0) @ low[:, pages].mT
        return torch.nn.functional.pad(bound, (0, pages.stop - bound.shape[-1]))  # columns beyond the text

    def _ends(self, key: Float[Tensor, "head k_pos d"], first: int) -> list[Float[Tensor, "head page d"]]:
        """Smallest and largest value of each channel in each page."""
        sides = (0, 0, first, -(key.shape[1] + first) % self.page)  # left padding is cut off
        pages = [
            torch.nn.functional.pad(key, sides, value=end).unflatten(1, (-1, self.page))
            for end in (math.inf, -math.inf)
        ]
        return [pages[0].amin(2), pages[1].amax(2)]

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Pages by bound."""
        if view.layer < self.dense_layers:
            return view.visible
        _, seen, own = key_blocks(view, self.page, "max")
        return spread_blocks(top_keys(self.bounds(view), self.pages, seen & ~own) | own, view, self.page)

    @classmethod
    def sized(cls, keys: int, length: int) -> "Quest":
        """Pages of 16, or of a quarter of a small budget; every layer."""
        page = max(1, min(16, keys // 4))
        return cls(page, max(1, keys // page - 1), dense_layers=0)
