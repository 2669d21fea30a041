"""How much of an answer a response holds: ROUGE-1 recall."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

KEPT = 0.5
"""Above this recall the paper keeps an instance (its 50 of 100)."""


def rouge1_recall(reference: Sequence[Hashable], response: Sequence[Hashable]) -> float:
    """Share of the reference's units (words or tokens) that the response holds, each as often as it has it.

    The released code uses the package rouge_score with stemming: see :func:`stems`.

    Args:
        reference: Units of the answer; at least one.
        response: Units of the response, in any order.

    Source: Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries.

    Example:
        >>> rouge1_recall(["a", "b", "a", "c"], ["a", "b", "b"])
        0.5
    """
    wanted, found = Counter(reference), Counter(response)
    return sum((wanted & found).values()) / max(sum(wanted.values()), 1)


def words(text: str) -> list[str]:
    """Lower-case words of a text, letters and digits of any script.

    Example:
        >>> words("Plum cake, at 9!")
        ['plum', 'cake', 'at', '9']
    """
    return re.findall(r"[^\W_]+", text.lower())


def stems(text: str) -> list[str]:
    """Words of a text in Porter's stems, as rouge_score compares them: words of up to 3 letters stay as they are.

    Porter's rules are for English; words of other scripts stay as they are written.

    Source: Porter (1980), An algorithm for suffix stripping.

    Example:
        >>> stems("Riding the copper trams")
        ['ride', 'the', 'copper', 'tram']
    """
    return [_porter().stemWord(word) if len(word) > 3 else word for word in words(text)]


@cache
def _porter() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("porter")
