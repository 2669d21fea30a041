"""PaintScores: scores of a span raised by a share of their own size, where text is predicted (PAINT)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import Block
from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.fields import parse_number, parse_span
from sinklens.interventions.heads import Heads, as_index, heads_in_block, parse_heads
from sinklens.interventions.positions import Positions
from sinklens.interventions.prompt import PromptEnd, PromptLength, parse_prompt_length

FIRST_LAYER = 2


@dataclass(frozen=True)
class PaintScores(Intervention):
    """Raises the scores of a span by a share of their size: ``s_j <- s_j + alpha |s_j|``, and beta for a summary.

    Changed are the rows that predict new text: the prompt's last one and all after it; layers from ``first_layer`` on.
    ``alpha=0`` and ``beta=0`` change no bit.

    The strength depends on where the scores lie, not on what they say: a score of -4 becomes -1.2 at alpha 0.7 (sixteen
    times the weight), a score of 4 becomes 6.8, and a constant added to a row, which changes no weight, changes what
    this does. :class:`~sinklens.interventions.SteerAttention` means the same in every head.

    In the paper the span is a quarter of an image's tokens (those that the image's own encoder looks at) and the
    summary a few of them; here both are positions of text that you name.

    Args:
        span: Positions to raise, in every sequence: positions, ranges, or several of both.
        alpha: Share of its size that a score in the span gains, from 0.
        summary: Positions raised by ``beta``, none of the span.
        beta: Share that a score of the summary gains, from 0.
        heads: ``"all"``, or heads such as ``["L5H1", (5, 2)]``.
        first_layer: First layer changed.
        prompt_length: Tokens of the prompt, one number or one for each sequence. Not told, it is all of the last
            forward pass without a cache.

    Source: Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large Vision-Language Model (PAINT),
    arXiv 2501.12206; code hasanar1f/PAINT.
    """

    span: tuple[int, ...]
    alpha: float = 0.7
    summary: tuple[int, ...] = ()
    beta: float = 0.3
    heads: Heads = "all"
    first_layer: int = FIRST_LAYER
    prompt_length: PromptLength = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "span", parse_span(self.span, "span"))
        object.__setattr__(self, "summary", () if self.summary in ((), []) else parse_span(self.summary, "summary"))
        if {*self.span} & {*self.summary}:
            raise InputError(f"summary holds {min({*self.span} & {*self.summary})}, which the span holds too.")
        for name in ("alpha", "beta"):
            object.__setattr__(self, name, parse_number(getattr(self, name), name, 0))
        if as_index(self.first_layer) < 0:
            raise InputError(f"first_layer must be an integer from 0, got {self.first_layer!r}.")
        object.__setattr__(self, "first_layer", as_index(self.first_layer))
        object.__setattr__(self, "heads", parse_heads(self.heads))
        object.__setattr__(self, "prompt_length", parse_prompt_length(self.prompt_length))

    def check(self, model: TransformerBridge) -> None:
        """The model has these heads, and a layer from the first one changed on."""
        super().check(model)
        if self.first_layer >= len(model.blocks):
            raise InputError(
                f"first_layer is {self.first_layer}, so nothing would be changed: the model has layers 0 to "
                f"{len(model.blocks) - 1}."
            )

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of scores."""
        return [_Raise(self, positions)]


class _Raise:
    def __init__(self, method: PaintScores, positions: Positions) -> None:
        self.method, self.positions = method, positions
        self.prompt = PromptEnd(positions, method.prompt_length)

    def edit_scores(self, block: Block) -> None:
        method = self.method
        end = self.prompt.of(block.shape)[block.sequence]
        heads = heads_in_block(method.heads, block)
        if heads == [] or block.shape.layer < method.first_layer:
            return
        rows, keys = self.positions.rows(block), self.positions.keys(block)
        share = torch.zeros(len(keys), dtype=block.scores.dtype, device=keys.device)
        for places, gain in ((method.span, method.alpha), (method.summary, method.beta)):
            share[torch.isin(keys, torch.tensor(places, device=keys.device))] = gain
        share = share * (rows >= end - 1)[:, None]
        scores = block.scores[heads]
        # a hidden key is -inf and stays so
        block.scores[heads] = torch.where((share > 0) & scores.isfinite(), scores + share * scores.abs(), scores)
