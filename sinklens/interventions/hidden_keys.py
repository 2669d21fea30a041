"""The edit behind every mask: keys hidden from some heads."""

import math
from collections.abc import Callable

from jaxtyping import Bool
from torch import Tensor

from sinklens.attention import AttentionShape, Block
from sinklens.attention.score_form import ScoreChange
from sinklens.interventions.heads import Heads, heads_in_block, heads_in_layer


class HiddenKeys:
    """Edit that writes ``-inf`` to the scores of ``heads`` where ``hidden(block)`` is True.

    Args:
        hidden: Says which keys of a block to hide, broadcastable to ``[q_pos k_pos]``.
        heads: Heads that lose them.
        in_closed_form: Says the same for kernels that see no block, for the heads of a layer that lose keys.
    """

    def __init__(
        self,
        hidden: Callable[[Block], Bool[Tensor, "#q_pos k_pos"]],
        heads: Heads = "all",
        in_closed_form: Callable[[AttentionShape, list[int]], ScoreChange | None] | None = None,
    ) -> None:
        self.hidden, self.heads, self.in_closed_form = hidden, heads, in_closed_form

    def score_change(self, shape: AttentionShape) -> ScoreChange | None:
        """What is hidden in closed form, ``None`` where there is none."""
        heads = heads_in_layer(self.heads, shape)
        if not heads:
            return ScoreChange()
        return None if self.in_closed_form is None else self.in_closed_form(shape, heads)

    def edit_scores(self, block: Block) -> None:
        """Hide the keys."""
        heads = heads_in_block(self.heads, block)
        if heads != []:
            block.scores[heads] = block.scores[heads].masked_fill(self.hidden(block), -math.inf)
