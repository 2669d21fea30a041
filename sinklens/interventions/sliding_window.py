"""SlidingWindow: only the last tokens and a few first ones stay visible (StreamingLLM)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.attention import AttentionShape, Block
from sinklens.attention.score_form import ScoreChange
from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.heads import Heads, as_index, parse_heads
from sinklens.interventions.hidden_keys import HiddenKeys
from sinklens.interventions.positions import Positions


@dataclass(frozen=True)
class SlidingWindow(Intervention):
    """Lets every query see only the recent keys and the first ones: those with ``i - j < window`` or ``j < sinks``.

    ``window`` counts the query's own position, as transformers' ``sliding_window`` does: ``window=1`` is the token
    alone. StreamingLLM counts otherwise: its cache holds ``sinks`` first and R most recent entries, and is cut *after*
    each forward pass, so a query sees the cache and itself on top. :meth:`streaming` takes that R:

    ================================  ==================  ====================================  ===================
    written                           window              query i sees, far from the start      number of keys
    ================================  ==================  ====================================  ===================
    ``SlidingWindow(W, sinks=s)``     W                   0 .. s-1 and i-W+1 .. i               s + W
    ``.streaming(R, sinks=s)``        R + 1               0 .. s-1 and i-R .. i                 s + R cached + itself
    ================================  ==================  ====================================  ===================

    A window as long as the text changes nothing. Layers that slide by themselves keep their own mask as well, so
    ``sinks`` does not bring back a key that such a layer has dropped.

    This is StreamingLLM's mask, not its re-numbering: keys keep the positions they were rotated with. Keys and values
    of deeper layers carry what their tokens saw when they arrived, as in a cache; encoding only the kept tokens anew
    gives something else.

    With ``heads`` the others keep their full attention: the split into streaming and retrieval heads of DuoAttention
    (its ``recent`` counts the query itself, as ``window`` does). Heads are query heads; the cache of a KV head can only
    be cut when all query heads that read it stream, so name whole groups: :func:`heads_of_kv` gives them.

    Args:
        window: Keys up to and including the query's own position, at least 1.
        sinks: First tokens of the text that stay visible to everyone.
        heads: ``"all"``, or the heads that stream, such as ``["L5H1", (5, 2)]``.

    Source: Xiao et al. (2024), Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453; by head:
    Xiao et al. (2025), DuoAttention, arXiv 2410.10819.
    """

    window: int
    sinks: int = 0
    heads: Heads = "all"

    def __post_init__(self) -> None:
        if as_index(self.window) < 1:
            raise InputError(f"window must be an integer from 1 (the token itself), got {self.window!r}.")
        if as_index(self.sinks) < 0:
            raise InputError(f"sinks must be an integer from 0, got {self.sinks!r}.")
        object.__setattr__(self, "window", as_index(self.window))
        object.__setattr__(self, "sinks", as_index(self.sinks))
        object.__setattr__(self, "heads", parse_heads(self.heads))

    @classmethod
    def streaming(cls, recent: int, sinks: int = 0, heads: Heads = "all") -> "SlidingWindow":
        """The window of a StreamingLLM cache of ``sinks`` + ``recent`` entries (its start_size and recent_size).

        Args:
            recent: Most recent cached entries R, at least 1; the query itself comes on top.
            sinks: First tokens that are never dropped.
            heads: The heads that stream.

        Raises:
            InputError: No recent entry: such a cache would hold nothing new.

        >>> SlidingWindow.streaming(recent=4, sinks=1)
        SlidingWindow(window=5, sinks=1, heads='all')
        """
        if as_index(recent) < 1:
            raise InputError(f"recent must be an integer from 1, got {recent!r}.")
        return cls(as_index(recent) + 1, sinks, heads)

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of scores."""

        def hidden(block: Block) -> Bool[Tensor, "q_pos k_pos"]:
            keys = positions.keys(block)
            return (positions.rows(block)[:, None] - keys >= self.window) & (keys >= self.sinks)

        def in_closed_form(shape: AttentionShape, heads: list[int]) -> ScoreChange:
            limits = torch.zeros(shape.heads, dtype=torch.int32, device=shape.device)
            limits[heads] = self.window
            keys = positions.key_positions(shape)
            farthest = (keys[:, -1:] - keys >= self.window) & (keys >= self.sinks)
            return ScoreChange(limits=limits, spared=keys < self.sinks, hides=bool(farthest.any()))

        return [HiddenKeys(hidden, self.heads, in_closed_form)]
