"""Routing attention: tokens read those that fell into the same cluster."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.policies.learned import Learned
from sinklens.policies.view import View


@dataclass(frozen=True)
class Routing(Learned):
    """Lets a query read the earlier keys of its clusters; in several of them their outputs are averaged, in none is 0.

    Every cluster takes the ``size`` queries and, apart from them, the ``size`` keys of the whole text that are nearest
    to its centre (both normalised to mean 0 and variance 1): scope global. Centres are learned: without ``weights``
    they are random, and what they choose means nothing.

    Args:
        clusters: Centres of a layer, the same for all heads.
        size: Queries, and keys, that a cluster takes.
        weights: File of trained weights (centres by layer).
        seed: Of random ones.
    """

    clusters: int = 8
    size: int = 128

    name: ClassVar[str] = "routing"
    scope: ClassVar = "global"
    may_be_empty: ClassVar[bool] = True
    positive: ClassVar = ("clusters", "size")
    source: ClassVar[str] = "Roy et al. 2021, arXiv 2003.05997; lucidrains/routing-transformer (trained)"

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Logarithm of the mean over clusters of the attention within each."""
        first, stop = view.span
        whole = view.whole
        if self.size >= int(whole.is_text.sum()):
            return view.scores
        d = view.key.shape[-1]
        centres = self.trained(view.layer, {"centres": (self.clusters, d)}, view.key)
        takes_query = self._taken(view.queries_of(first, stop), centres["centres"])
        keys = whole.is_text
        takes_key = torch.zeros(len(view.heads), self.clusters, len(whole.keys), dtype=torch.bool).to(keys.device)
        takes_key[..., keys] = self._taken(whole.key[:, keys], centres["centres"])
        total = torch.full_like(view.scores, -math.inf)
        count = total.new_zeros(*total.shape[:2], 1)
        for cluster in range(self.clusters):
            inside = takes_query[:, cluster, (view.rows - first).clamp(0, stop - first - 1), None]
            inside = inside & takes_key[:, cluster, None, : len(view.keys)] & view.visible
            within = view.scores.masked_fill(~inside, -math.inf).log_softmax(-1).nan_to_num(-math.inf, neginf=-math.inf)
            total = torch.logaddexp(total, within)
            count += inside.any(-1, keepdim=True)
        return total - count.clamp(min=1).log()

    def _taken(self, x: Float[Tensor, "head n d"], centres: Tensor) -> Bool[Tensor, "head cluster n"]:
        """Which vectors each cluster takes."""
        fit = centres @ torch.nn.functional.layer_norm(x, x.shape[-1:]).mT
        best = fit.topk(min(self.size, fit.shape[-1]), -1).indices
        return torch.zeros_like(fit, dtype=torch.bool).scatter_(-1, best, True)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """What any cluster shows."""
        return view.visible

    @classmethod
    def sized(cls, keys: int, length: int) -> "Routing":
        """As many clusters as share out the text."""
        return cls(max(1, -(-length // max(1, keys))), keys)
