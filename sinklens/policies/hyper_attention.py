"""HyperAttention: hashed buckets of queries and keys, and a weighted sample of the rest."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class HyperAttention(Policy):
    """Reads keys that a hash puts near the query, and random ones that count for those between them.

    The text is halved again and again; a stretch of at most ``exact_below`` tokens attends to itself exactly. Before
    that, the second half of each stretch reads the first so: both are sorted by angular hash (signs of ``bits`` random
    projections in Gray code), query block i reads key block i, and every query ``samples`` random keys of the half,
    each with weight n / samples. Random: report several seeds. Where a query stands in the order depends on later
    queries: scope global.

    Args:
        block: Queries and keys in a block of the sorted order.
        samples: Random keys of each half.
        exact_below: Stretches that are read in full.
        bits: Projections of the hash.
        seed: Of projections and samples.
    """

    block: int = 256
    samples: int = 256
    exact_below: int = 4096
    bits: int = 7
    seed: int = 0

    name: ClassVar[str] = "hyper_attention"
    scope: ClassVar = "global"
    positive: ClassVar = ("block", "samples", "exact_below", "bits")
    source: ClassVar[str] = "Han et al. 2023, arXiv 2310.05869; insuhan/hyper-attn"

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Sampled keys with the logarithm of their weight on top."""
        return view.scores if view.span[1] <= self.exact_below else view.scores + self._plan(view)[1]

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """The own stretch, buckets and samples."""
        return view.visible if view.span[1] <= self.exact_below else self._plan(view)[0]

    def _plan(self, view: View) -> tuple[Tensor, Tensor]:
        """Keys that are read, and the logarithm of their weights."""
        first, stop = view.span
        kept = torch.zeros_like(view.visible)
        weight = torch.zeros_like(view.scores)
        stretches = [(0, stop)]
        while stretches:
            low, high = stretches.pop()
            middle = (low + high) // 2
            rows = (view.rows >= max(low, first)) & (view.rows < high)
            if not bool(rows.any()):
                continue
            if high - low <= self.exact_below:
                kept[:, rows] |= (view.keys >= low) & (view.keys < high)
                continue
            stretches += [(low, middle), (middle, high)]
            rows = rows & (view.rows >= middle)
            if not bool(rows.any()):
                continue
            keys = (view.keys >= low) & (view.keys < middle)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + view.layer * 4_099 + low)
            begin = max(middle, first)
            planes = torch.randn(view.key.shape[-1], self.bits, generator=generator).to(view.key)
            number = self._bucket(view.queries_of(begin, high) @ planes)[:, view.rows[rows] - begin]
            bucket = self._bucket(view.key[:, keys] @ planes)
            near = number.clamp(max=int(bucket.max()))[:, :, None] == bucket[:, None]
            half = middle - low
            drawn = torch.zeros(half, dtype=torch.bool)
            drawn[torch.randperm(half, generator=generator)[: self.samples]] = True
            sampled = drawn.to(near.device)[view.keys[keys] - low]
            at = rows.nonzero(), keys.nonzero()[:, 0]  # together they broadcast to rows and keys
            kept[:, *at] = near | sampled
            weight[:, *at] = (math.log(max(1.0, half / self.samples)) * (sampled & ~near)).to(weight)
        return kept, weight

    def _bucket(self, projected: Float[Tensor, "head n bit"]) -> Int[Tensor, "head n"]:
        """Block of the sorted order that each vector falls into."""
        code = ((projected > 0).long() << torch.arange(self.bits, device=projected.device)).sum(-1)
        shift = 1
        while shift < self.bits:  # from Gray code to its rank, so that neighbours differ in one sign
            code, shift = code ^ (code >> shift), shift * 2
        return code.argsort(dim=-1, stable=True).argsort(dim=-1) // self.block

    @classmethod
    def sized(cls, keys: int, length: int) -> "HyperAttention":
        """Half the budget (or a whole text) for the own stretch, the rest for blocks and samples of the halvings."""
        exact = max(2, keys // 2 if keys < length else keys)
        part = max(1, keys // 4 // max(1, math.ceil(math.log2(max(2, length / exact)))))
        return cls(part, part, exact)
