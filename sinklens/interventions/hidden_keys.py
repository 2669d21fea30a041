"""The edit behind every mask: keys hidden from some heads."""

import math
from collections.abc import Callable

from jaxtyping import Bool
from torch import Tensor

from sinklens.attention import Block
from sinklens.interventions.heads import Heads, heads_in_block


class HiddenKeys:
    """Edit that writes ``-inf`` to the scores of ``heads`` where ``hidden(block)`` is True.

    Args:
        hidden: Says which keys of a block to hide, broadcastable to ``[q_pos k_pos]``.
        heads: Heads that lose them.
    """

    def __init__(self, hidden: Callable[[Block], Bool[Tensor, "#q_pos k_pos"]], heads: Heads = "all") -> None:
        self.hidden, self.heads = hidden, heads

    def edit_scores(self, block: Block) -> None:
        """Hide the keys."""
        heads = heads_in_block(self.heads, block)
        if heads != []:
            block.scores[heads] = block.scores[heads].masked_fill(self.hidden(block), -math.inf)
