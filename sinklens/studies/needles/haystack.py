"""Texts to hide a needle in, and the places where one may stand."""

import random
import re
from dataclasses import dataclass

from sinklens.errors import InputError

_ENDS = re.compile(r"""[.!?\u2026\u3002\uff01\uff1f]["'\u201d\u2019)\]]*(?=\s|$)|(?<=\S)(?=\s*\n\s*\n)""")


def sentence_ends(text: str) -> list[int]:
    r"""Character positions where sentences end: after ``. ! ?`` (closing quotes too) before a blank, at blank lines.

    Found from the text alone, so it is the same for every tokenizer (the released code looks for two token ids of
    Llama's). Abbreviations end a sentence too.

    Example:
        >>> sentence_ends('He said "no." She left. In 3.5 hours\n\nNight')
        [13, 23, 36]
    """
    return sorted({match.end() for match in _ENDS.finditer(text)})


@dataclass(frozen=True)
class Haystack:
    """A text of which each prompt takes the beginning.

    Attributes:
        text: As much as the longest prompt may need.
        places: Character positions where a needle may be put in, in order.
        whole: Whether it may only be cut at one of them too (entries of a list), or anywhere.
    """

    text: str
    places: tuple[int, ...]
    whole: bool = False

    def last_place(self, position: int) -> int:
        """The last place up to a character position; 0 before the first."""
        return max((place for place in self.places if place <= position), default=0)

    def cut(self, position: int) -> int:
        """Where to cut so that no more than ``position`` characters are left."""
        return self.last_place(position) if self.whole else position


def text_haystack(text: str, characters: int, *, repeat: int = 0, seed: int = 0) -> Haystack:
    """A haystack of at least so many characters from a text; repeat 0 begins at its start, others at some sentence.

    What stood before that sentence follows at the end, and a short text is repeated until it is long enough.

    Raises:
        InputError: An empty text.
    """
    text = text.strip()
    if not text:
        raise InputError("The haystack is empty; expected some text.")
    starts = [end for end in sentence_ends(text) if end < len(text)]
    if repeat and starts:
        begin = random.Random(f"{seed}/haystack/{repeat}").choice(starts)
        text = f"{text[begin:].strip()}\n\n{text[:begin].strip()}"
    copies = -(-characters // (len(text) + 2))
    full = "\n\n".join([text] * max(1, copies))
    return Haystack(full, tuple(sentence_ends(full)))
