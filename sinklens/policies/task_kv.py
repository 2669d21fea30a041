"""Task-KV: heads that do something of their own keep everything, the others sinks, recent and middle keys."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.detectors.heterogeneity import heterogeneous, heterogeneous_count, offsets
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View
from sinklens.policies.votes import PromptVotes


@dataclass(frozen=True)
class TaskKV(PromptVotes):
    """Lets a layer's heterogeneous heads keep the whole prompt; the others keep first, last and most attended keys.

    A head's vector is ``sum_I C_i v_i`` with C the mean attention of the prompt's last ``window`` rows and I its
    ``strongest`` largest keys. Heterogeneous are the ``f(layer)`` heads farthest from the layer's mean vector and the
    closest one; f falls linearly from ``beta`` of the heads to ``least``. Middle keys are the largest votes averaged
    over ``pool`` neighbours. Decided when the prompt is read; its own rows read everything, so score later ones.

    Args:
        middle: Most attended keys of the prompt that the other heads keep.
        sinks: First keys that they keep.
        recent: Last keys of the prompt that they keep.
        beta: Share of far heads in layer 0.
        least: Far heads in the last layer.
        strongest: Keys that a head's vector is made of.
        window: Last rows of the prompt that vote.
        pool: Width of the average, an odd number.
    """

    middle: int = 64
    sinks: int = 16
    recent: int = 256
    beta: float = 0.25
    least: int = 1
    strongest: int = 256
    pool: int = field(default=7, kw_only=True)

    name: ClassVar[str] = "task_kv"
    source: ClassVar[str] = "He et al. 2025, arXiv 2501.15113 (from notes, no code)"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Everything for the prompt's rows; afterwards by head."""
        prompt = view.prompt or 0
        after = view.rows >= prompt
        kept = (~after)[:, None] | (view.keys < self.sinks) | (view.keys >= prompt - self.recent)
        if not self.vote(view) or not bool(after.any()):
            return kept.expand_as(view.scores)
        votes, old = self.votes(view), (view.keys >= 0) & (view.keys < prompt)
        between = old & (view.keys >= self.sinks) & (view.keys < prompt - self.recent)
        best = top_keys(self.pooled(votes), self.middle, between.expand_as(votes))
        strong = votes * top_keys(votes, self.strongest, old.expand_as(votes)) / self.window
        vectors = torch.einsum("hk,hkd->hd", strong, view.value)
        count = heterogeneous_count(view.layer, view.n_layers, len(vectors), beta=self.beta, least=self.least)
        whole = heterogeneous(offsets(vectors), count)
        found: Tensor = kept | best[:, None] | whole[:, None, None]
        return found

    @classmethod
    def sized(cls, keys: int, length: int) -> "TaskKV":
        """An eighth sinks, half recent, the rest middle keys; the heads that keep everything come on top."""
        sinks, recent = min(16, keys // 8), max(1, keys // 2)
        return cls(max(0, keys - sinks - recent), sinks, recent, window=max(1, min(32, keys // 4)))
