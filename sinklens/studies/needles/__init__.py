"""Needles in haystacks: prompts with a known answer somewhere in them, and which heads find it."""

from sinklens.studies.needles.decode import decode_needle
from sinklens.studies.needles.grid import needle_grid, score_needles
from sinklens.studies.needles.haystack import Haystack, sentence_ends, text_haystack
from sinklens.studies.needles.instance import KINDS, Kind, NeedleInstance
from sinklens.studies.needles.make import DEPTHS, make_needles
from sinklens.studies.needles.needle_set import NeedleSet
from sinklens.studies.needles.outcome import Outcome
from sinklens.studies.needles.question import Question
from sinklens.studies.needles.result import NeedleResult
from sinklens.studies.needles.retrieval_scores import retrieval_scores
from sinklens.studies.needles.run import run_needles

__all__ = [
    "DEPTHS",
    "KINDS",
    "Haystack",
    "Kind",
    "NeedleInstance",
    "NeedleResult",
    "NeedleSet",
    "Outcome",
    "Question",
    "decode_needle",
    "make_needles",
    "needle_grid",
    "retrieval_scores",
    "run_needles",
    "score_needles",
    "sentence_ends",
    "text_haystack",
]
