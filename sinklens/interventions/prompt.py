"""Where the prompt ends and generated text begins: told, or the first forward pass."""

from collections.abc import Iterable

from sinklens.attention import AttentionShape
from sinklens.errors import InputError
from sinklens.interventions.heads import as_index
from sinklens.interventions.positions import Positions
from sinklens.wording import several

PromptLength = int | tuple[int, ...] | None
"""Tokens of the prompt: of every sequence, of each sequence, or not told."""


def parse_prompt_length(length: object) -> PromptLength:
    """One number for all sequences, one for each, or ``None``.

    Raises:
        InputError: Something else, or a number below 1.

    >>> parse_prompt_length(None), parse_prompt_length(5), parse_prompt_length([5, 7])
    (None, 5, (5, 7))
    """
    if length is None:
        return None
    several = isinstance(length, Iterable) and not isinstance(length, str)
    found = tuple(as_index(number) for number in (length if several else (length,)))  # type: ignore[attr-defined]
    if not found or min(found) < 1:
        raise InputError(f"prompt_length must be a number of tokens from 1, or one for each sequence; got {length!r}.")
    return found if several else found[0]


class PromptEnd:
    """Says how many tokens of each sequence are its prompt.

    Without a told length the prompt is all of the last forward pass without a cache, and what follows with its cache
    is generated text. A full pass over prompt and continuation can only equal cached decoding when the length is told.

    Args:
        positions: Knows whether the pass in hand has a cache.
        length: As the intervention's field says. A batch of several times as many sequences as there are numbers is
            taken for copies of them, one after the other.
    """

    def __init__(self, positions: Positions, length: PromptLength) -> None:
        self.positions, self.length = positions, length
        self.first_pass: list[int] | None = None

    def of(self, shape: AttentionShape) -> list[int]:
        """Prompt tokens of every sequence; position ``p`` is part of the prompt if it is smaller.

        Raises:
            InputError: Told numbers do not fit the batch; or nothing was told, and the cache in use was filled
                before the intervention began.
        """
        if isinstance(self.length, int):
            return [self.length] * shape.batch
        if self.length is not None:
            copies, rest = divmod(shape.batch, len(self.length))
            if rest:
                raise InputError(
                    f"prompt_length names {several(len(self.length), 'sequence')}, the batch has {shape.batch}."
                )
            return [*self.length] * copies
        if self.positions.cached == 0:
            padding = self.positions.first_real or [0] * shape.batch
            self.first_pass = [shape.q_pos - n for n in padding]
        if self.first_pass is None or len(self.first_pass) != shape.batch:
            raise InputError(
                "The prompt of this KV cache was not read under the intervention; run it inside `with`, or say how "
                "long it was with prompt_length."
            )
        return self.first_pass
