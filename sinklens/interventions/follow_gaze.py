"""FollowGaze: a span emphasised where the question's attention turns to it (GIFT)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import Block
from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.fields import parse_number, parse_span
from sinklens.interventions.heads import Heads, as_index, heads_in_block, parse_heads
from sinklens.interventions.positions import Positions
from sinklens.interventions.prompt import PromptEnd, PromptLength, parse_prompt_length
from sinklens.interventions.received import heads_of

UNKNOWN_CACHE = (
    "The question was not read under the intervention, so nothing says where it looked: read each text under it from "
    "its first token on, the question in one forward pass."
)


@dataclass(frozen=True)
class FollowGaze(Intervention):
    """Multiplies a span's weights by a saliency that one layer's shifts of attention give, while text is predicted.

    In ``gaze_layer`` the question's row t gives each head's shift ``max(0, A[t, j] - A[t-1, j])`` towards each j of the
    span. The half of the heads with the largest total shift is kept, its mean over heads and question tokens is
    ``m``, clipped to its mean plus or minus three deviations, brought to 0 to 1, and the saliency is ``exp(alpha m)``.
    In the layers from ``first_layer`` to ``last_layer``, in the prompt's last row and all after it, the span's weights
    are multiplied by it and the question's by the one factor by which the span's total grew; then the row is brought
    back to its sum. ``alpha=0`` changes weights by rounding alone.

    The paper's span is an image, its layers 11 (gaze) and 12 to 22 of 32, and it counts only content words of the
    question; here every position that you name counts. How the question's columns grow is read from a summary of its
    code.

    Args:
        span: Positions to emphasise, in every sequence: positions, ranges, or several of both.
        question: Positions whose rows say where to look; none before the span's end, each has a row before it.
        alpha: Strength, from 0.
        gaze_layer: Layer whose shifts count; default: a third of the way.
        first_layer: First layer changed, after ``gaze_layer``; default: the next one.
        last_layer: Last layer changed; default: two thirds of the way.
        heads: ``"all"``, or heads whose weights are changed; the gaze is always that of all heads.
        prompt_length: Tokens of the prompt, one number or one for each sequence. Not told, it is all of the last
            forward pass without a cache.

    Source: Gaze shift-guided fusion (GIFT), arXiv 2510.22067.
    """

    span: tuple[int, ...]
    question: tuple[int, ...]
    alpha: float = 5.0
    gaze_layer: int | None = None
    first_layer: int | None = None
    last_layer: int | None = None
    heads: Heads = "all"
    prompt_length: PromptLength = None

    def __post_init__(self) -> None:
        for name in ("span", "question"):
            object.__setattr__(self, name, parse_span(getattr(self, name), name))
        if self.question[0] <= self.span[-1]:
            raise InputError(
                f"The question begins at {self.question[0]} and the span ends at {self.span[-1]}: a question looks "
                "back, so it has to stand behind the span."
            )
        object.__setattr__(self, "alpha", parse_number(self.alpha, "alpha", 0))
        for name in ("gaze_layer", "first_layer", "last_layer"):
            number = getattr(self, name)
            if number is not None:
                if as_index(number) < 0:
                    raise InputError(f"{name} must be an integer from 0, got {number!r}.")
                object.__setattr__(self, name, as_index(number))
        object.__setattr__(self, "heads", parse_heads(self.heads))
        object.__setattr__(self, "prompt_length", parse_prompt_length(self.prompt_length))

    def layers(self, n_layers: int) -> tuple[int, int, int]:
        """The layer of the gaze, the first and the last one changed, in a model of so many."""
        gaze = n_layers // 3 if self.gaze_layer is None else self.gaze_layer
        first = gaze + 1 if self.first_layer is None else self.first_layer
        last = max(first, 2 * n_layers // 3) if self.last_layer is None else self.last_layer
        return gaze, first, last

    def check(self, model: TransformerBridge) -> None:
        """The model has these heads and layers, in this order."""
        super().check(model)
        gaze, first, last = self.layers(len(model.blocks))
        if not gaze < first <= last < len(model.blocks):
            raise InputError(
                f"Expected gaze_layer < first_layer <= last_layer < {len(model.blocks)}, the model's layers; got "
                f"{gaze}, {first} and {last}."
            )

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of the pattern."""
        return [_Gaze(self, positions)]


def saliency(
    rows: Float[Tensor, "head q_pos key"], before: Float[Tensor, "head q_pos key"], alpha: float
) -> Float[Tensor, " key"]:
    """Factor for each key of a span, from a question's rows and the rows before them.

    Example:
        >>> rows = torch.tensor([[[0.1, 0.4, 0.1]], [[0.1, 0.1, 0.1]]])
        >>> saliency(rows, torch.full_like(rows, 0.1), alpha=1.0)  # the first head turns to the second key
        tensor([1.0000, 2.7183, 1.0000])
    """
    shift = (rows - before).clamp(min=0)
    kept = shift.sum((1, 2)).argsort(descending=True, stable=True)[: max(1, len(shift) // 2)]
    m = shift[kept].mean((0, 1))
    if len(m) > 1:
        m = m.clamp(m.mean() - 3 * m.std(), m.mean() + 3 * m.std())
    size = m.max() - m.min()
    return (alpha * (m - m.min()) / size).exp() if float(size) > 0 else torch.ones_like(m)


class _Gaze:
    def __init__(self, method: FollowGaze, positions: Positions) -> None:
        self.method, self.positions = method, positions
        self.prompt = PromptEnd(positions, method.prompt_length)
        self.watched = sorted({*method.question} | {each - 1 for each in method.question})
        self.seen: dict[int, Tensor] = {}  # by sequence: rows of the question and those before them, [head row key]
        self.weights: dict[int, Tensor] = {}

    def edit_pattern(self, block: Block) -> None:
        if self.positions.n_layers is None:
            raise InputError("FollowGaze has to know the model's layers; open it with `with X(...)(model):`.")
        method = self.method
        gaze, first, last = method.layers(self.positions.n_layers)
        end = self.prompt.of(block.shape)[block.sequence]
        if method.question[-1] >= end:
            raise InputError(
                f"The question ends at position {method.question[-1]}, and the prompt of sequence {block.sequence} has "
                f"{end} tokens; give positions within the prompt."
            )
        layer = block.shape.layer
        if layer == gaze:
            self._look(block)
        heads = heads_in_block(method.heads, block)
        if not first <= layer <= last or heads == []:
            return
        rows, keys = self.positions.rows(block), self.positions.keys(block)
        late = rows >= end - 1
        if not bool(late.any()):
            return
        span, question = (_places(keys, places) for places in (method.span, method.question))
        pattern = block.pattern[heads]
        factor = torch.ones(len(keys), device=keys.device)
        factor[span >= 0] = self._weights(block.sequence).to(keys.device)[span[span >= 0]]
        inside = pattern * (span >= 0)
        grown = (inside * factor).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp(min=1e-30)
        changed = pattern * torch.where(question >= 0, grown.clamp(min=1), factor)
        changed = changed * pattern.sum(-1, keepdim=True) / changed.sum(-1, keepdim=True).clamp(min=1e-30)
        block.pattern[heads] = torch.where(late[:, None], changed, pattern)

    def _look(self, block: Block) -> None:
        """Keep what the question's rows, and the rows before them, give to the span."""
        rows, keys = (
            _places(self.positions.rows(block), self.watched),
            _places(self.positions.keys(block), self.method.span),
        )
        size = (block.shape.heads, len(self.watched), len(self.method.span))
        kept = self.seen.get(block.sequence)
        if kept is None or kept.shape != size:
            kept = self.seen[block.sequence] = torch.zeros(size, device=block.pattern.device)
        mine = torch.tensor(heads_of(block, slice(None)), device=kept.device)
        if block.rows.start == 0 and self.positions.cached == 0:
            kept[mine] = 0  # a new text
        if bool((rows >= 0).any()):
            self.weights.pop(block.sequence, None)
            part = block.pattern[:, rows >= 0][..., keys >= 0]
            kept[mine[:, None, None], rows[rows >= 0][:, None], keys[keys >= 0]] = part

    def _weights(self, sequence: int) -> Tensor:
        if sequence not in self.weights:
            if sequence not in self.seen:
                raise InputError(UNKNOWN_CACHE)
            rows = self.seen[sequence]
            at = torch.tensor([self.watched.index(each) for each in self.method.question], device=rows.device)
            self.weights[sequence] = saliency(rows[:, at], rows[:, at - 1], self.method.alpha)
        return self.weights[sequence]


def _places(positions: Tensor, wanted: Sequence[int]) -> Tensor:
    """Index of each position among some sorted ones, -1 where it is none of them."""
    known = torch.tensor([*wanted], device=positions.device)
    place = torch.searchsorted(known, positions).clamp(max=len(known) - 1)
    return torch.where(known[place] == positions, place, -1)
