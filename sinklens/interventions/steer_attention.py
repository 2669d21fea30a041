"""SteerAttention: a span of the prompt emphasised by making the rest of the prompt fainter (PASTA)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sinklens.attention import Block
from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.fields import parse_number, parse_span
from sinklens.interventions.heads import Heads, heads_in_block, parse_heads
from sinklens.interventions.positions import Positions
from sinklens.interventions.prompt import PromptEnd, PromptLength, parse_prompt_length


@dataclass(frozen=True)
class SteerAttention(Intervention):
    """Steers attention to a span G of the prompt: the weight of its other keys times alpha, the row renormalised.

    ``s_j <- s_j + log(alpha)`` before the softmax for ``j < P`` outside G, P the prompt's length; the same as
    ``A'_j = alpha A_j / C`` there and ``A'_j = A_j / C`` elsewhere with ``C = 1 - (1 - alpha) sum_{j outside G} A_j``.
    Keys of generated text are never made fainter, and rows that see no key of G and none that was generated stay as
    they are. A learned sink logit keeps its weight before the division by C, as a generated key does. ``alpha=1``
    changes no bit; above 1 it emphasises everything but the span.

    Several sections are one span, their union, so that alpha means the same however the span is cut up; pastalib
    applies its constant once for each section, which multiplies the outside by alpha to the number of sections against
    generated text. Only PASTA's default form is here (``scale_position="exclude"``).

    Args:
        span: Positions to emphasise, in every sequence: positions, ranges, or several of both, such as
            ``[range(5, 9), 12]``.
        alpha: Factor on the rest of the prompt, above 0.
        heads: ``"all"``, or heads such as ``["L5H1", (5, 2)]``; the method's authors select some by profiling.
        prompt_length: Tokens of the prompt, one number or one for each sequence. Not told, it is all of the last
            forward pass without a cache; a pass over prompt and continuation together needs it to equal cached
            decoding.

    Source: Zhang et al. (2024), Tell Your Model Where to Attend (PASTA), arXiv 2311.02262; code QingruZhang/PASTA.
    """

    span: tuple[int, ...]
    alpha: float = 0.01
    heads: Heads = "all"
    prompt_length: PromptLength = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "span", parse_span(self.span, "span"))
        object.__setattr__(self, "alpha", parse_number(self.alpha, "alpha", 0, above=True))
        object.__setattr__(self, "heads", parse_heads(self.heads))
        object.__setattr__(self, "prompt_length", parse_prompt_length(self.prompt_length))

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of scores."""
        return [_FainterOutside(self, positions)]


class _FainterOutside:
    def __init__(self, method: SteerAttention, positions: Positions) -> None:
        self.method, self.positions = method, positions
        self.prompt = PromptEnd(positions, method.prompt_length)

    def edit_scores(self, block: Block) -> None:
        heads = heads_in_block(self.method.heads, block)
        end = self.prompt.of(block.shape)[block.sequence]
        if self.method.span[0] >= end:
            raise InputError(
                f"The span begins at position {self.method.span[0]}, and the prompt of sequence {block.sequence} has "
                f"{end} tokens; give positions within the prompt."
            )
        if heads == []:
            return
        keys = self.positions.keys(block)
        outside = (keys < end) & ~torch.isin(keys, torch.tensor(self.method.span, device=keys.device))
        block.scores[heads] += math.log(self.method.alpha) * outside.to(block.scores.dtype)
