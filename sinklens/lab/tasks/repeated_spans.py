"""Repeated spans: random tokens, then a block that comes again and again."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sinklens.errors import InputError
from sinklens.lab.tasks.word_task import WordTask, choice


@dataclass(frozen=True)
class RepeatedSpans(WordTask):
    """Continue a block of random words that comes again and again.

    ``BOS prefix block block ..``: offset, length and number of the blocks vary from sequence to sequence.

    Prefix and block are different words. A sequence of n words has a prefix of 0 to ``offset * n`` words, and the rest
    is a block of ``rest // r`` words (two at least) ``r`` times, ``r`` uniform in ``repeats``; what the division leaves
    over is the beginning of one more block. From the second block on every word follows from the one before.
    Ids: 0 to ``n_words - 1``, then BOS.

    Attributes:
        n_words: ordinary tokens.
        repeats: least and greatest number of blocks.
        offset: longest prefix, as a share of the words.
        seq_len: tokens of a sequence where a method is given none, BOS included.

    Raises:
        InputError: if a number is out of range, or a sequence needs more different words than there are.

    Example:
        >>> task = RepeatedSpans(n_words=9, repeats=(3, 3), offset=0.0, seq_len=7)
        >>> row = task.sample(1, generator=torch.Generator().manual_seed(0))[0].tolist()
        >>> row[0], row[1:3] == row[3:5] == row[5:7]
        (9, True)
    """

    repeats: tuple[int, int] = (2, 4)
    offset: float = 0.25
    seq_len: int = 61

    def __post_init__(self) -> None:
        """Refuse settings that define no task."""
        if not 2 <= self.repeats[0] <= self.repeats[1]:
            raise InputError(f"A block comes at least twice; repeats must be (least, most), not {self.repeats}.")
        if not 0.0 <= self.offset < 1.0:
            raise InputError(f"The prefix is a share from 0 to below 1 of the words, not {self.offset}.")
        self._check(self.seq_len)

    def sample(
        self, batch: int, seq_len: int | None = None, generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch pos"]:
        """Draw sequences; vectorised over the batch.

        Raises:
            InputError: if the length needs more different words than there are, or has no room for a repeat.
        """
        length = self.seq_len if seq_len is None else seq_len
        self._check(length)
        words = length - 1
        least, most = self.repeats
        times = torch.randint(least, most + 1, (batch, 1), generator=generator)
        prefix = (torch.rand(batch, 1, generator=generator) * (self.offset * words + 1)).long().clamp(max=words - 4)
        block = ((words - prefix) // times).clamp(min=2)
        drawn = choice(self.n_words, min(self.n_words, words), batch, generator)
        place = torch.arange(words)[None]
        source = torch.where(place < prefix, place, prefix + (place - prefix) % block)
        return torch.cat([torch.full((batch, 1), self.bos_id), drawn.gather(1, source)], 1)

    def _check(self, length: int) -> None:
        words = length - 1
        # prefix + block at their longest, when the block comes least often
        prefix = int(self.offset * words)
        most = prefix + (words - prefix) // self.repeats[0]
        if words < 4 or most > self.n_words:
            raise InputError(
                f"Repeated spans of {self.n_words} words need at least 5 tokens and at most {self.n_words} different "
                f"words; {length} tokens need up to {most}."
            )
