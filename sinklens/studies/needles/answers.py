"""Whether a prompt counts as answered: by exact tokens, the answer contained, a share of tokens, or ROUGE-1."""

from collections.abc import Mapping
from typing import Any, Literal

from sinklens.errors import InputError
from sinklens.studies.needles.needle_set import NeedleSet
from sinklens.studies.needles.rouge import KEPT, words

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
