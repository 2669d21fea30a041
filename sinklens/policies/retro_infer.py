"""RetroInfer: the best clusters of the prompt are read, the next stand in by mean key and mean value."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.choose import top_keys
from sinklens.policies.clusters import cluster_prompt, spread_clusters
from sinklens.policies.view import View


@dataclass(frozen=True)
class RetroInfer(Policy):
    """Lets rows after the prompt read first, recent and newer keys, the best clusters, and stand-ins for the next best.

    Clusters by ``q . m`` with their mean key m: the best ``exact`` share is read key by key, the next ``estimated``
    share as one key each with weight ``n exp(q . m)`` and the mean value, the rest not at all. Computed without
    building the stand-ins: every key of such a cluster gets the score of its mean key. Each segment of the prompt is
    clustered for itself.

    Args:
        exact: Share of the clusters that is read.
        estimated: Share that is estimated.
        per_cluster: Keys for each cluster.
        sinks: First tokens that are read.
        recent: Most recent tokens that are read.
        segment: Keys that are clustered together (the release: 16 segments of a prompt of 128 k tokens).
    """

    exact: float = 0.018
    estimated: float = 0.232
    per_cluster: int = 16
    sinks: int = 4
    recent: int = 64
    segment: int = 8192

    name: ClassVar[str] = "retro_infer"
    scope: ClassVar = "prompt"
    positive: ClassVar = ("per_cluster", "segment")
    source: ClassVar[str] = "Chen et al. 2025, arXiv 2505.02922; microsoft/RetrievalAttention, retroinfer_attn.py"

    def _choice(self, view: View) -> tuple[Tensor, Tensor, Tensor] | None:
        """Keys read, keys that a stand-in has, and its score at each of them; ``None`` where all rows read all."""
        prompt, after = view.prompt or 0, (view.rows >= (view.prompt or 0))[:, None]
        if not bool(after.any()) or self.exact >= 1:
            return None
        label, mean, size = cluster_prompt(view, prompt, self.per_cluster, self.segment)
        fit = view.capped(view.query @ mean.mT)
        among = (size > 0)[:, None].expand_as(fit)
        n_exact, n_more = round(self.exact * fit.shape[-1]), round(self.estimated * fit.shape[-1])
        best = top_keys(fit, n_exact, among)
        more = top_keys(fit, n_more, among & ~best)
        steady = (view.keys < self.sinks) | (view.distance < self.recent) | (view.keys >= prompt) | ~after
        read = steady | spread_clusters(best, label, view, False)
        return read, spread_clusters(more, label, view, False) & ~read, spread_clusters(fit, label, view, 0.0)

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Estimated keys at the score of their cluster's mean key."""
        choice = self._choice(view)
        return view.scores if choice is None else torch.where(choice[1] & view.visible, choice[2], view.scores)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """What is read and what is estimated."""
        choice = self._choice(view)
        return view.visible if choice is None else choice[0] | choice[1]

    def as_they_are(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Bool[Tensor, "head q_pos k_pos"]:
        """What is read."""
        choice = self._choice(view)
        return kept if choice is None else kept & choice[0]

    def entries(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "head q_pos"]:
        """Keys read, and one for each estimated cluster."""
        choice = self._choice(view)
        if choice is None:
            return kept.sum(-1).float()
        stands = choice[1] & view.visible
        label = view.state["clusters"][0]
        number = label[:, view.keys.clamp(0, label.shape[1] - 1)][:, None].expand_as(stands)
        counted = stands.float()
        seen = counted.new_zeros(*stands.shape[:2], int(label.max()) + 1).scatter_add_(-1, number, counted)
        return (kept & choice[0]).sum(-1) + (seen > 0).sum(-1).float()

    @classmethod
    def sized(cls, keys: int, length: int) -> "RetroInfer":
        """A quarter first and recent, half in clusters of 4 that are read, as many in stand-ins; or a whole text."""
        share = keys / 2 / length
        return cls(
            share if keys < length else 1.0,
            min(share, 0.5),
            4,
            min(4, keys // 8),
            max(1, keys // 4 - min(4, keys // 8)),
        )
