"""Pairs of prompts that a path is patched between."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.models.ordinary_tokens import ordinary_ids
from sinklens.models.tokens import BosChoice, TokenBatch, begun_batch, bos_prefix, to_batch


class PromptPairs(NamedTuple):
    """Clean and corrupted prompts of one length, with the right and a wrong next token of each clean one.

    Attributes:
        clean: The prompts.
        corrupted: The same with what is asked about changed.
        correct: Ids of right answers.
        wrong: Of wrong ones.
    """

    clean: TokenBatch
    corrupted: TokenBatch
    correct: list[int]
    wrong: list[int]


def repeated_prompts(
    model: TransformerBridge, count: int = 6, *, bos: BosChoice = "auto", seed: int = 0
) -> PromptPairs:
    """Eight random tokens and the first five again; corrupted, the fifth is another one in the first copy.

    The right answer is the sixth token, which only a look back at the fifth one's first copy tells; the wrong one is
    the eighth.

    Raises:
        InputError: No pair, or fewer than nine ordinary tokens.
    """
    known, start = ordinary_ids(model), list(bos_prefix(model, bos)[0])
    if count < 1 or len(known) < 9:
        raise InputError(f"Expected at least one pair of a vocabulary of 9 tokens; got {count} of {len(known)}.")
    draw = torch.Generator().manual_seed(seed)
    clean, corrupted, correct, wrong = [], [], [], []
    for _ in range(count):
        block = known[torch.randperm(len(known), generator=draw)[:9]].tolist()
        clean.append(start + block[:8] + block[:5])
        corrupted.append(start + block[:4] + block[8:] + block[5:8] + block[:5])
        correct.append(block[5])
        wrong.append(block[7])
    return PromptPairs(begun_batch(model, clean, bos), begun_batch(model, corrupted, bos), correct, wrong)


def text_prompts(
    model: TransformerBridge, pairs: Sequence[tuple[str, str, str, str]], *, bos: BosChoice = "auto"
) -> PromptPairs:
    """Pairs of texts, each a clean and a corrupted prompt, the right next word and a wrong one (first tokens count).

    Raises:
        InputError: No pair, prompts that are not all of one length in tokens, or answers that begin alike.
    """
    if not pairs:
        raise InputError("Expected at least one pair of prompts, got none.")
    clean, corrupted = (to_batch(model, [pair[at] for pair in pairs], bos=bos) for at in (0, 1))
    for number, lengths in enumerate(zip(clean.lengths.tolist(), corrupted.lengths.tolist(), strict=True)):
        if {*lengths} != {int(clean.lengths[0])}:
            raise InputError(
                f"All prompts need one length in tokens, so that positions match; pair {number} has {lengths[0]} and "
                f"{lengths[1]}, pair 0 has {int(clean.lengths[0])}. Change words until they fit."
            )
    right, false = ([int(to_batch(model, pair[at], bos="no").ids[0, 0]) for pair in pairs] for at in (2, 3))
    alike = [number for number, (a, b) in enumerate(zip(right, false, strict=True)) if a == b]
    if alike:
        raise InputError(f"The answers of pair {alike[0]} begin with the same token; give others.")
    return PromptPairs(clean, corrupted, right, false)
