"""Passkeys among random tokens: what only a head that looks far back can answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.errors import InputError


@dataclass(frozen=True)
class Passkeys:
    """Sequences with keys and values hidden in them, and the keys asked for at the end.

    Attributes:
        ids: ``[batch pos]``, all of one length.
        questions: True at the keys that ask, ``[batch pos]``.
        answers: True at the values that answer, ``[batch pos]``; each follows its key at once.
        needles: True at keys and values where they are hidden, ``[batch pos]``.
        value_len: Values of a key.
        distinct: Whether no token occurs twice but those of the needles, so that every answer is unambiguous.
    """

    ids: Int[Tensor, "batch pos"]
    questions: Bool[Tensor, "batch pos"]
    answers: Bool[Tensor, "batch pos"]
    needles: Bool[Tensor, "batch pos"]
    value_len: int
    distinct: bool


def draw_passkeys(
    vocabulary: Int[Tensor, " token"],
    *,
    length: int,
    passkeys: int,
    value_len: int,
    batch: int,
    generator: torch.Generator,
    bos_id: int | None = None,
    depths: tuple[float, float] = (0.05, 0.95),
) -> Passkeys:
    """``[BOS] haystack [key value_1 .. value_K] haystack .. key value_1 .. value_K key ..`` of random tokens.

    Every key occurs once before it asks. The needles stand at depths drawn uniformly from ``depths`` (share of the
    haystack before them); at the end all keys ask, in random order, each followed by its values. Where the vocabulary
    is large enough no other token occurs twice either; in a smaller one haystack and values repeat, but no key does.

    Args:
        vocabulary: Ids to draw from, without special tokens.
        length: Tokens of a sequence, BOS included.
        passkeys: Needles in a sequence, all asked for.
        value_len: Values of a key, K.
        batch: Sequences.
        generator: Of everything random.
        bos_id: Stands first, if there is one.
        depths: Smallest and largest depth.

    Raises:
        InputError: Needles and questions leave no haystack, or the vocabulary has too few tokens.

    Example:
        >>> drawn = draw_passkeys(
        ...     torch.arange(50),
        ...     length=12,
        ...     passkeys=1,
        ...     value_len=2,
        ...     batch=1,
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> drawn.ids[0][drawn.needles[0]].tolist() == drawn.ids[0][drawn.questions[0] | drawn.answers[0]].tolist()
        True
        >>> drawn.questions[0].nonzero().flatten().tolist(), drawn.answers[0].nonzero().flatten().tolist()
        ([9], [10, 11])
    """
    span, begun = 1 + value_len, int(bos_id is not None)
    haystack = length - begun - 2 * passkeys * span
    if passkeys < 1 or value_len < 1 or batch < 1:
        raise InputError(f"passkeys, value_len and batch must be at least 1, got {passkeys}, {value_len} and {batch}.")
    if not 0 <= depths[0] <= depths[1] <= 1:
        raise InputError(f"depths must be two shares of the haystack in order, from 0 to 1, got {depths}.")
    if haystack < 1:
        raise InputError(
            f"{passkeys} passkeys of {span} tokens and their questions leave no haystack in {length} tokens; use fewer "
            "or shorter ones, or a longer text."
        )
    distinct = len(vocabulary) >= haystack + passkeys * span
    if len(vocabulary) < passkeys + 2:
        raise InputError(f"{passkeys} keys need more ordinary tokens than the {len(vocabulary)} that there are.")
    ids = torch.empty(batch, length, dtype=torch.long)
    questions, answers, needles = (torch.zeros(batch, length, dtype=torch.bool) for _ in range(3))
    low, high = depths
    places = (low + (high - low) * torch.rand(batch, passkeys, generator=generator)) * haystack
    for row in range(batch):
        shuffled = vocabulary[torch.randperm(len(vocabulary), generator=generator)]
        keys, rest = shuffled[:passkeys], shuffled[passkeys:]
        if not distinct:
            rest = rest[torch.randint(len(rest), (haystack + passkeys * value_len,), generator=generator)]
        values = rest[: passkeys * value_len].view(passkeys, value_len)
        hidden = torch.cat([keys[:, None], values], 1)
        filler = rest[passkeys * value_len :][:haystack]
        order = torch.randperm(passkeys, generator=generator)
        line, marks = _hide(filler, hidden, places[row].sort().values.long().tolist())
        ids[row] = torch.cat([torch.tensor([bos_id] * begun, dtype=torch.long), line, hidden[order].flatten()])
        needles[row, begun : begun + len(line)] = marks
    questions[:, begun + haystack + passkeys * span :: span] = True
    answers[:, begun + haystack + passkeys * span :] = True
    answers &= ~questions
    return Passkeys(ids, questions, answers, needles, value_len, distinct)


def _hide(
    filler: Int[Tensor, " haystack"], hidden: Int[Tensor, "needle span"], places: Sequence[int]
) -> tuple[Int[Tensor, " pos"], Bool[Tensor, " pos"]]:
    """The haystack with the needles in it, each after so many of its tokens, and where they are."""
    parts, marks, before = [], [], 0
    for needle, place in zip(hidden, places, strict=True):
        for part, mark in ((filler[before:place], False), (needle, True)):
            parts.append(part)
            marks.append(torch.full((len(part),), mark))
        before = place
    parts.append(filler[before:])
    marks.append(torch.zeros(len(parts[-1]), dtype=torch.bool))
    return torch.cat(parts), torch.cat(marks)
