"""One prompt with a needle in it, and where everything stands."""

from dataclasses import dataclass, field
from typing import Literal

from sinklens.errors import InputError

Kind = Literal["random", "passkey", "json", "natural"]
KINDS: tuple[Kind, ...] = ("random", "passkey", "json", "natural")


@dataclass(frozen=True)
class NeedleInstance:
    """A haystack with a needle, a question, and the answer that the needle holds.

    Positions count tokens of the prompt from 0, its BOS included.

    Attributes:
        kind: How it was made.
        length: Prompt tokens asked for.
        depth: Where in the haystack the needle was asked for, from 0 (its start) to 1 (its end).
        repeat: Instances with the same number share haystack, needle and question over all lengths and depths.
        ids: The prompt, up to the token that predicts the answer's first.
        answer: The answer's tokens, as they stand in the needle.
        span: First position of the answer's copy in the prompt, and one past its last.
        needle: The same of the whole needle.
        depth_got: Haystack tokens before the needle over all haystack tokens; NaN for an empty haystack.
        bos: One sentence about who put a BOS first, or why there is none.
        text: The prompt as text, ``None`` where tokens were drawn and not written.
        answer_text: The answer as text, likewise.

    Raises:
        InputError: The span does not hold the answer.
    """

    kind: Kind
    length: int
    depth: float
    repeat: int
    ids: tuple[int, ...] = field(repr=False)
    answer: tuple[int, ...]
    span: tuple[int, int]
    needle: tuple[int, int]
    depth_got: float
    bos: str = field(repr=False)
    text: str | None = field(default=None, repr=False)
    answer_text: str | None = None

    def __post_init__(self) -> None:
        start, stop = self.span
        if not self.answer or self.ids[start:stop] != self.answer or start < 0:
            raise InputError(
                f"The prompt's tokens {start} to {stop} must be the answer, one token at least; they are "
                f"{self.ids[start:stop]} and the answer is {self.answer}."
            )

    @property
    def fed(self) -> tuple[int, ...]:
        """Prompt and all answer tokens but the last: what one teacher-forced pass takes."""
        return self.ids + self.answer[:-1]
