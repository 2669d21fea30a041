"""Squeezed Attention: keys of a fixed prompt by cluster, above one threshold for all heads."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.interventions.fields import parse_number
from sinklens.policies.base import Policy
from sinklens.policies.clusters import cluster_prompt, spread_clusters
from sinklens.policies.view import View


@dataclass(frozen=True)
class Squeezed(Policy):
    """Lets rows after the prompt read the keys whose cluster would get enough attention, and its last ones.

    A cluster with mean key m and n members scores ``exp(q . m) / sum_j n_j exp(q . m_j)``; all keys of a cluster above
    the threshold are read. The threshold is the ``quantile`` of what keys score for the prompt's last ``voters`` rows,
    the same for all heads of a layer, so that heads get uneven budgets; the paper's one threshold for all layers, which
    no layer knows before the last, comes from :func:`~sinklens.policies.over_layers.squeezed_threshold`. Deviation:
    one level of clusters.

    Args:
        quantile: Share of the prompt's keys to leave out; 0 keeps all.
        per_cluster: Keys for each cluster (the paper: 20, which is 5 % of the tokens).
        voters: Last rows of the prompt that set the threshold; as many last keys are always read.
        threshold: A score for all layers, in place of the quantile of each.
    """

    quantile: float = 0.7
    per_cluster: int = 20
    voters: int = 100
    threshold: float | None = None

    name: ClassVar[str] = "squeezed"
    scope: ClassVar = "prompt"
    positive: ClassVar = ("per_cluster", "voters")
    source: ClassVar[str] = "Hooper et al. 2024, arXiv 2411.09688; SqueezeAILab/SqueezedAttention"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_number(self.quantile, "quantile", 0, 1)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Everything for the prompt's rows; afterwards keys by cluster."""
        prompt, stop = view.prompt or 0, (view.prompt or 0) - self.voters
        after, voters = view.rows >= prompt, (view.rows >= max(stop, 0)) & (view.rows < prompt)
        if self.quantile and bool(voters.any()):
            held = view.state.get("voters", view.query[:, :0])
            view.state["voters"] = torch.cat((held, view.query[:, voters]), 1)
        kept = (~after)[:, None] | (view.keys >= stop)
        if not self.quantile or not bool(after.any()) or stop < 1:
            return kept.expand_as(view.scores) | (self.quantile == 0)
        label, mean, size = cluster_prompt(view, stop, self.per_cluster)
        threshold = self.threshold
        if threshold is None:
            if "threshold" not in view.state:
                view.state["threshold"] = self.cut(self.votes(view))
            threshold = view.state["threshold"]
        return kept | spread_clusters(self._score(view.query, mean, size) > threshold, label, view, False)

    def votes(self, view: View) -> Float[Tensor, " vote"]:
        """What every key scores for every voter of every head, once the prompt's rows are through."""
        label, mean, size = cluster_prompt(view, (view.prompt or 0) - self.voters, self.per_cluster)
        votes = self._score(view.state["voters"], mean, size)
        return votes.gather(-1, label[:, None].expand(-1, votes.shape[1], -1)).flatten()

    def cut(self, votes: Float[Tensor, " vote"]) -> float:
        """The quantile of some votes."""
        return float(votes.sort().values[int(self.quantile * (len(votes) - 1))])

    @staticmethod
    def _score(query: Tensor, mean: Tensor, size: Tensor) -> Float[Tensor, "head rows cluster"]:
        logits = query @ mean.mT
        weighted = logits + size.log()[:, None]  # empty clusters have none
        return torch.exp(logits - weighted.logsumexp(-1, keepdim=True))

    @classmethod
    def sized(cls, keys: int, length: int) -> "Squeezed":
        """A quarter for the prompt's last keys, the rest as a share of what stands before them, clusters of 4."""
        last = max(1, keys // 4)
        return cls(max(0.0, 1 - (keys - last) / max(1, length - last)), 4, last)
