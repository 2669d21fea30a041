"""Everything that decides about a sweep's numbers, as a description to compare another run with."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sinklens.errors import InputError
from sinklens.evidence.effects import NO_ANSWER, Answers, predicted_rows
from sinklens.interventions import Intervention
from sinklens.models.tokens import TokenBatch
from sinklens.studies.ablation.question import Question
from sinklens.studies.ablation.recipe import ModelRecipe


def measurable(batch: TokenBatch, answers: Answers | None) -> list[int]:
    """Indices of sequences that predict at least one token or have an answer.

    Raises:
        InputError: There is none.
    """
    usable = predicted_rows(batch).any(1)
    if answers is not None:
        usable |= answers.position != NO_ANSWER
    found: list[int] = usable.nonzero().flatten().tolist()
    if not found:
        raise InputError("No sequence has a token to predict; give texts of at least two tokens.")
    return found


def describe_sweep(
    recipe: ModelRecipe,
    batch: TokenBatch,
    answers: Answers | None,
    asked: Mapping[str, Intervention | str],
    question: Question,
    batch_size: int | None,
) -> dict[str, Any]:
    """Everything that decides about the numbers, as JSON; two runs with equal descriptions give the same table."""
    tokens = hashlib.sha256()
    for row, length in zip(batch.ids.tolist(), batch.lengths.tolist(), strict=True):
        tokens.update(json.dumps(row[:length]).encode())
    given = None if answers is None else [t.tolist() for t in (answers.position, answers.correct, answers.wrong)]
    return {
        "model": {"weights": recipe.fingerprint[:16], "dtype": recipe.dtype},
        "texts": {"sequences": len(batch), "tokens": int(batch.lengths.sum()), "hash": tokens.hexdigest()[:16]},
        "answers": None if given is None else _hash(json.dumps(given)),
        "interventions": {
            label: each if isinstance(each, str) else _short_json(each.to_json()) for label, each in asked.items()
        },
        **question.describe(),
        "batch_size": batch_size,
        "versions": dict(recipe.versions),
    }


def _short_json(text: str) -> str:
    return text if len(text) <= 2000 else _hash(text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
