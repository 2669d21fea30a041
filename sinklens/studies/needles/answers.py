"""Whether a prompt counts as answered: by exact tokens, the answer contained, a share of tokens, or ROUGE-1."""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

from sinklens.errors import InputError
from sinklens.studies.needles.needle_set import NeedleSet

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


Keep = Literal["exact", "contained", "share", "rouge", "all"]
KEEP: tuple[Keep, ...] = ("exact", "contained", "share", "rouge", "all")

SHARE = 0.5
"""From this share of right answer tokens on a prompt counts as answered by ``"share"``."""

RULES: Mapping[Keep, str] = {
    "exact": "every answer token is the most likely one",
    "contained": "the decoded text holds the answer's words in a row",
    "share": f"at least {SHARE:.0%} of the answer's tokens are the most likely ones, given the answer so far",
    "rouge": f"ROUGE-1 recall of the answer in the decoded text, with stemming, above {KEPT:g} (the paper's)",
    "all": "every prompt",
}
"""What each filter asks of a prompt."""

DECODED: frozenset[Keep] = frozenset({"contained", "rouge"})
"""Filters that judge decoded text."""


def contains(response: str, answer: str) -> bool:
    """Whether a response holds the words of an answer one after another, in any case and with any marks between.

    >>> contains("Sure! It is ALPHA, bravo.", "alpha bravo"), contains("bravo alpha", "alpha bravo")
    (True, False)
    """
    wanted, found = words(answer), words(response)
    return bool(wanted) and any(found[at : at + len(wanted)] == wanted for at in range(len(found)))


def answered(row: Mapping[Any, Any], keep: Keep) -> bool:
    """Whether one prompt counts as answered.

    Args:
        row: ``exact``, ``correct``, and for text ``contained`` and ``rouge1``.
        keep: The filter.

    Raises:
        InputError: A filter of decoded text, and nothing was decoded.

    >>> row = {"exact": False, "correct": 15 / 16}
    >>> answered(row, "exact"), answered(row, "share")
    (False, True)
    """
    if keep in DECODED:
        recall = row.get("rouge1")
        if recall is None or recall != recall:
            raise InputError(f"keep={keep!r} judges decoded text and nothing was decoded; set generate (--generate N).")
        return bool(row["contained"]) if keep == "contained" else float(recall) > KEPT
    if keep == "share":
        return float(row["correct"]) >= SHARE
    return keep == "all" or bool(row["exact"])


def usual_keep(needles: NeedleSet, generate: int) -> Keep:
    """ROUGE where text is decoded; else a share of tokens for needles in text, and all of them for random tokens."""
    if all(each.answer_text is None for each in needles.instances):
        return "exact"
    return "rouge" if generate else "share"


def check_keep(keep: str) -> None:
    """Refuse an unknown filter.

    Raises:
        InputError: It is none of :data:`KEEP`.
    """
    if keep not in KEEP:
        raise InputError(f"keep must be one of {', '.join(KEEP)}, got {keep!r}.")
