"""StreamingLLM: first and recent tokens, at the positions that they have inside the cache."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.policies.base import Policy
from sinklens.policies.rotary import frequencies, turned
from sinklens.policies.view import View


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Keeps first and recent tokens, and numbers them anew: the sinks stand right before the window.

    The cache of ``sinks + recent`` keys is cut after each step, so a row reads itself on top (:class:`SinkWindow` with
    ``evict_after=True`` is the same mask at the old positions). Its keys are rotated as if they stood at 0, 1, 2 ...,
    which changes nothing inside the window and brings the sinks near: ``q_t`` is turned to position
    ``min(t, sinks + recent)`` when it reads a sink.

    Args:
        sinks: First tokens that stay.
        recent: Most recent tokens in the cache.
    """

    sinks: int = 4
    recent: int = 252

    name: ClassVar[str] = "streaming_llm"
    scope: ClassVar = "causal"
    group: ClassVar = "model"
    evicts: ClassVar[bool] = True
    positive: ClassVar = ("recent",)
    source: ClassVar[str] = "Xiao et al. 2024, arXiv 2309.17453; mit-han-lab/streaming-llm, pos_shift"

    def check(self, model: TransformerBridge) -> None:
        """The model's keys can be turned."""
        frequencies(model, 0)

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Scores of the sinks from the place that a query has in the cache."""
        place = view.rows.clamp(max=self.sinks + self.recent)
        far = place < view.rows
        sinks = (view.keys >= 0) & (view.keys < self.sinks)
        if not bool(far.any()):
            return view.scores
        query = turned(view.query, (place - view.rows).float(), view.frequencies)
        near = view.capped(query @ view.key[:, sinks].transpose(-1, -2))
        scores = view.scores.clone()
        old = scores[..., sinks]
        scores[..., sinks] = torch.where(far[:, None] & (old != -math.inf), near, old)
        return scores

    def keep(self, view: View) -> Bool[Tensor, "q_pos k_pos"]:
        """First and last tokens."""
        return (view.keys < self.sinks) | (view.distance <= self.recent)

    @classmethod
    def sized(cls, keys: int, length: int) -> "StreamingLLM":
        """Four sinks, or a quarter of a small budget, and the rest recent, with room for the query itself."""
        sinks = min(4, keys // 4)
        return cls(sinks, max(1, keys - sinks - 1))
