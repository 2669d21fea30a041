"""Which character follows which in a text: counts, kept as a small CSV file."""

import csv
import io
import itertools
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sinklens.errors import InputError, ResultError
from sinklens.models.builtin import data_dir
from sinklens.results.files import write_atomically

_HEADER = ["first", "second", "count"]


@dataclass(frozen=True, eq=False)
class BigramCounts:
    """How often each character of a text is followed by each other one.

    Attributes:
        characters: the alphabet, sorted by code point; a character's index is its token id.
        counts: `counts[a, b]` is the number of places where character `b` directly follows `a`.

    Example:
        >>> table = BigramCounts.from_text("abab b")
        >>> table.characters
        (' ', 'a', 'b')
        >>> table.counts.tolist()
        [[0, 0, 1], [0, 0, 2], [1, 1, 0]]
        >>> table.occurrences.tolist()
        [1, 2, 3]
    """

    characters: tuple[str, ...]
    counts: Int[Tensor, "char next_char"]

    @classmethod
    def from_text(cls, text: str) -> "BigramCounts":
        """Count the adjacent pairs of `text`, line breaks included.

        Raises:
            InputError: if the text has fewer than two characters, or ends in one that is seen nowhere else,
                so that nothing is known to follow it.
        """
        if len(text) < 2:
            raise InputError(f"A text of at least two characters is needed to count pairs, and this has {len(text)}.")
        characters = tuple(sorted(set(text)))
        index = {character: i for i, character in enumerate(characters)}
        counts = torch.zeros(len(characters), len(characters), dtype=torch.long)
        for (first, second), count in Counter(itertools.pairwise(text)).items():
            counts[index[first], index[second]] = count
        if bool((counts.sum(1) == 0).any()):
            raise InputError(f"Nothing follows the last character {text[-1]!r}; end the text before it.")
        return cls(characters, counts)

    @classmethod
    def load(cls, path: Path) -> "BigramCounts":
        """Read the table that `save` wrote.

        Raises:
            ResultError: if the file is missing or is not such a table.
        """
        try:
            with path.open(encoding="utf-8", newline="") as file:
                header, *rows = list(csv.reader(file))
            pairs = {(_unescape(first), _unescape(second)): int(count) for first, second, count in rows}
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ResultError(
                f"A table of character pairs (columns first, second, count) was expected in {path}: {error}."
            ) from error
        characters = tuple(sorted({character for pair in pairs for character in pair}))
        if header != _HEADER or not pairs or any(len(character) != 1 for character in characters):
            raise ResultError(f"{path} is not a table of character pairs: columns first, second, count were expected.")
        index = {character: i for i, character in enumerate(characters)}
        counts = torch.zeros(len(characters), len(characters), dtype=torch.long)
        for (first, second), count in pairs.items():
            counts[index[first], index[second]] = count
        if bool((counts < 0).any()) or bool((counts.sum(1) == 0).any()):
            raise ResultError(f"{path} is damaged: each character needs a follower, and no count may be negative.")
        return cls(characters, counts)

    def save(self, path: Path) -> None:
        """Write the pairs that occur, one a row; line break, tab and backslash appear as two characters."""
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(_HEADER)
        for a, b in self.counts.nonzero().tolist():
            writer.writerow([_escape(self.characters[a]), _escape(self.characters[b]), int(self.counts[a, b])])
        write_atomically(path, buffer.getvalue().encode())

    @property
    def occurrences(self) -> Int[Tensor, " char"]:
        """How often each character occurs in the text.

        Every occurrence opens a pair except the last character's, and closes one except the first
        character's; the larger of the two sums is therefore exact unless the text begins and ends alike (then
        it is one too low).
        """
        return torch.maximum(self.counts.sum(1), self.counts.sum(0))

    @property
    def transition(self) -> Float[Tensor, "char next_char"]:
        """`P[a, b]`, the share of the places after `a` that hold `b`; rows sum to 1, in float64."""
        counts = self.counts.double()
        return counts / counts.sum(1, keepdim=True)

    @property
    def unigram(self) -> Float[Tensor, " char"]:
        """The share of each character in the text, in float64."""
        occurrences = self.occurrences.double()
        return occurrences / occurrences.sum()


@lru_cache(maxsize=1)
def tinyshakespeare_bigrams() -> BigramCounts:
    """Return the pairs of the tiny-Shakespeare text (65 characters), from the built-in data."""
    return BigramCounts.load(data_dir() / "bigrams" / "tinyshakespeare.csv")


_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNESCAPES = {escaped: character for character, escaped in _ESCAPES.items()}


def _escape(character: str) -> str:
    return _ESCAPES.get(character, character)


def _unescape(cell: str) -> str:
    return _UNESCAPES.get(cell, cell)
