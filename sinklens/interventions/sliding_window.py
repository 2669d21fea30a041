"""SlidingWindow: only the last tokens and a few first ones stay visible (StreamingLLM)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from sinklens.attention import Block
from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.heads import as_index
from sinklens.interventions.hidden_keys import HiddenKeys
from sinklens.interventions.positions import Positions


@dataclass(frozen=True)
class SlidingWindow(Intervention):
    """Query i keeps key j only where ``i - j < window`` or ``j < sinks``, in every layer and head.

    ``window`` counts the query's own position, as transformers' ``sliding_window`` does: ``window=1`` is the token
    alone, and a window of ``R + 1`` keeps R earlier tokens and itself. A window as long as the text changes nothing.
    Layers that slide by themselves keep their own mask as well, so ``sinks`` does not bring back a key that such a
    layer has dropped.

    This is StreamingLLM's mask, not its re-numbering: keys keep the positions they were rotated with.

    Args:
        window: Keys up to and including the query's own position, at least 1.
        sinks: First tokens of the text that stay visible to everyone.

    Source: Xiao et al. (2024), Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453.
    """

    window: int
    sinks: int = 0

    def __post_init__(self) -> None:
        if as_index(self.window) < 1:
            raise InputError(f"window must be an integer from 1 (the token itself), got {self.window!r}.")
        if as_index(self.sinks) < 0:
            raise InputError(f"sinks must be an integer from 0, got {self.sinks!r}.")
        object.__setattr__(self, "window", as_index(self.window))
        object.__setattr__(self, "sinks", as_index(self.sinks))

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of scores."""

        def hidden(block: Block) -> Bool[Tensor, "q_pos k_pos"]:
            keys = positions.keys(block)
            return (positions.rows(block)[:, None] - keys >= self.window) & (keys >= self.sinks)

        return [HiddenKeys(hidden)]
