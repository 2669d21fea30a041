"""Facts to recall: a prompt, what it is about, and the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import check_fields
from sinklens.errors import InputError
from sinklens.models.tokens import BosChoice, TokenBatch, to_batch
from sinklens.studies.conflict_heads.run import CAPITALS

MORE_CAPITALS = (
    ("Norway", "Oslo"), ("Sweden", "Stockholm"), ("Finland", "Helsinki"), ("Denmark", "Copenhagen"),
    ("Turkey", "Ankara"), ("Thailand", "Bangkok"), ("Kenya", "Nairobi"), ("Canada", "Ottawa"), ("Hungary", "Budapest"),
    ("Iraq", "Baghdad"), ("Syria", "Damascus"), ("Belgium", "Brussels"), ("Chile", "Santiago"), ("Vietnam", "Hanoi"),
    ("Scotland", "Edinburgh"), ("Venezuela", "Caracas"),
)  # fmt: skip
LEAST = 10
"""Half of them choose and half judge, and an interval needs five."""


@dataclass(frozen=True)
class Fact:
    """A prompt that asks for a fact: text and words, or ids throughout.

    Attributes:
        prompt: Ends where the answer stands.
        topic: What it is about, as it stands in the prompt; its first token counts.
        answer: The right one; its first token counts.
    """

    prompt: str | Sequence[int]
    topic: str | int
    answer: str | int

    def __post_init__(self) -> None:
        check_fields(self)


def capitals() -> list[Fact]:
    """Thirty-two facts such as "The capital of France is", about " France", " Paris"."""
    return [
        Fact(f"The capital of {country} is", f" {country}", f" {city}") for country, city in CAPITALS + MORE_CAPITALS
    ]


def prepared(
    model: TransformerBridge, facts: Sequence[Fact], bos: BosChoice, alike: bool
) -> tuple[TokenBatch, Int[Tensor, "fact two"]]:
    """The prompts, and the first ids of topic and answer.

    Args:
        model: The bridge.
        facts: At least ten.
        bos: As for :func:`sinklens.tokenize`.
        alike: Leave out facts whose topic or answer begins as an earlier one's, instead of refusing them.

    Raises:
        InputError: Too few facts, or two whose topics or answers begin with the same token.
    """

    def first(word: str | int) -> int:
        return word if isinstance(word, int) else int(to_batch(model, word, bos="no").ids[0, 0])

    ids = torch.tensor([[first(fact.topic), first(fact.answer)] for fact in facts]).reshape(-1, 2)
    seen: tuple[set[int], set[int]] = (set(), set())
    kept = []
    for number, pair in enumerate(ids.tolist()):
        again = [word for word, before in zip(pair, seen, strict=True) if word in before]
        if again and not alike:
            raise InputError(f"The topic or answer of fact {number} begins with the token of another; give others.")
        if not again:
            kept.append(number)
            for word, before in zip(pair, seen, strict=True):
                before.add(word)
    if len(kept) < LEAST:
        raise InputError(f"Expected at least {LEAST} facts that begin with different tokens, got {len(kept)}.")
    given: list[Any] = [facts[number].prompt for number in kept]
    return to_batch(model, given, bos=bos), ids[kept]
