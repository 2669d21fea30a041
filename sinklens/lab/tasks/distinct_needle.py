"""A needle behind any token: all tokens differ until one of them comes again and asks for what followed it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from sinklens.errors import InputError
from sinklens.lab.checks import at_least
from sinklens.lab.tasks.word_task import WordTask, choice


class FoundNeedles(NamedTuple):
    """Sequences and where their needles stand.

    Attributes:
        ids: ``[batch pos]``; the last ``value_len`` tokens are the answer, the one before them asks.
        start: position of the first value of the needle.
    """

    ids: Int[Tensor, "batch pos"]
    start: Int[Tensor, " batch"]


@dataclass(frozen=True)
class DistinctNeedle(WordTask):
    """Find what followed a word when that word comes again; any word may be asked for.

    ``BOS haystack key value_1 .. value_K haystack key value_1 .. value_K``.

    Up to the second key all tokens differ, so a key is known as such only when it comes again, and what follows is then
    certain. The place of the needle is uniform. Ids: 0 to ``n_words - 1``, then BOS.

    Attributes:
        n_words: ordinary tokens.
        value_len: values of a needle, K.
        seq_len: tokens of a sequence where a method is given none, BOS and answer included.

    Raises:
        InputError: if a sequence has no room for needle and question, or more tokens than can all differ.

    Source: as :class:`sinklens.lab.tasks.Needle`, without its reserved keys.

    Example:
        >>> task = DistinctNeedle(n_words=20, value_len=2, seq_len=10)
        >>> drawn = task.draw(1, generator=torch.Generator().manual_seed(0))
        >>> row, start = drawn.ids[0].tolist(), int(drawn.start)
        >>> row[start - 1 : start + 2] == row[-3:], len(set(row)) == len(row) - 3
        (True, True)
    """

    value_len: int = 8
    seq_len: int = 67

    def __post_init__(self) -> None:
        """Refuse settings that define no task."""
        at_least(self, value_len=1)
        self._check(self.seq_len)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence whose words can all differ until the question."""
        return 1 + self.n_words + 1 + self.value_len

    def draw(self, batch: int, seq_len: int | None = None, generator: torch.Generator | None = None) -> FoundNeedles:
        """Draw sequences and say where their needles stand; vectorised over the batch.

        Raises:
            InputError: if the length has no room for needle and question, or for different words.
        """
        length, span = self.seq_len if seq_len is None else seq_len, 1 + self.value_len
        self._check(length)
        words = choice(self.n_words, length - 1 - span, batch, generator)
        # the key is word number 0 .. (words that stay before the last possible needle)
        key = torch.randint(words.shape[1] - span + 1, (batch, 1), generator=generator)
        asked = words.gather(1, key + torch.arange(span))
        ids = torch.cat([torch.full((batch, 1), self.bos_id), words, asked], 1)
        return FoundNeedles(ids, key[:, 0] + 2)

    def sample(
        self, batch: int, seq_len: int | None = None, generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch pos"]:
        """Draw sequences.

        Raises:
            InputError: as :meth:`draw`.
        """
        return self.draw(batch, seq_len, generator).ids

    def _check(self, length: int) -> None:
        shortest = 1 + 2 * (1 + self.value_len)
        if not shortest <= length <= self.longest:
            raise InputError(
                f"A needle of {self.value_len} values among {self.n_words} words fits {shortest} to {self.longest} "
                f"tokens, not {length}."
            )
