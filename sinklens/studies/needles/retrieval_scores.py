"""Retrieval heads of a model, from its own answers to needles."""

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.retrieval import METRICS, CopyScores, RetrievalDetector, copy_scores
from sinklens.errors import InputError
from sinklens.interventions import Intervention
from sinklens.models.architecture import attention_layers
from sinklens.models.tokens import tokenize
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.needles.answers import DECODED, RULES, Keep, answered, contains
from sinklens.studies.needles.decode import MAX_STEPS, decode_needle, recall_of, written
from sinklens.studies.needles.instance import NeedleInstance
from sinklens.studies.needles.make import make_needles
from sinklens.studies.needles.needle_set import NeedleSet
from sinklens.studies.needles.outcome import Outcome
from sinklens.studies.needles.run import run_needles

Procedure = Literal["teacher", "decode"]


@checked
def retrieval_scores(
    model: TransformerBridge,
    needles: NeedleSet | None = None,
    *,
    keep: Keep = "exact",
    procedure: Procedure = "teacher",
    intervention: Intervention | None = None,
    share: bool = True,
    max_tokens: int | None = None,
    progress: Progress = SILENT,
) -> HeadScores:
    """Score every head by how much of the needle it copies while the model answers.

    ``"teacher"`` takes one teacher-forced pass per prompt. For prompts that the model answers these are the numbers of
    decoding the answer token by token, because each step then sees the tokens it produced itself. ``"decode"`` is the
    paper's procedure: greedy decoding of at most 50 tokens, much slower; there a head can copy more often than the
    answer is long.

    Args:
        model: The bridge.
        needles: The prompts; default: random needles as :func:`make_needles` draws them.
        keep: Which prompts count in the main scores: ``"exact"`` (every answer token is the most likely one),
            ``"share"`` (at least half of them are), ``"contained"`` (the decoded text holds the answer's words in a
            row), ``"rouge"`` (the paper's: ROUGE-1 recall of the decoded text, with stemming, above 0.5), or ``"all"``.
            The two that judge decoded text need ``"decode"``. Scores without any filter stand beside them.
        procedure: See above.
        intervention: A change of the model under which it is scored.
        share: Whether prompts share their beginnings (see :func:`run_needles`).
        max_tokens: Most tokens of a forward pass.
        progress: Told how it goes on, in prompts.

    Returns:
        One row per head of every layer with attention; for the columns see
        :class:`~sinklens.detectors.retrieval.RetrievalDetector`. Scores are NaN, with a warning in ``meta``, when no
        prompt is kept.

    Raises:
        InputError: An unknown word, a filter of decoded text without decoding, or prompts that do not fit the model.
        UnsupportedArchitectureError: A model without attention.

    Cost: one forward pass with fused attention per prompt; memory O(tokens).
    """
    if keep in DECODED and procedure != "decode":
        raise InputError(f'keep="{keep}" judges the decoded text; it needs procedure="decode".')
    needles = make_needles(model) if needles is None else needles
    progress.begin("Reading needles", len(needles))
    detector, layers = RetrievalDetector([]), sorted(attention_layers(model))
    if procedure == "teacher":

        def deliver(found: Mapping[int, Outcome]) -> None:
            for number, outcome in found.items():
                each = needles.instances[number]
                correct = outcome.correct(each.answer)
                row = {"exact": bool(correct.all()), "correct": float(correct.double().mean())}
                detector.add(layers, _scores(each, outcome), answered(row, keep))
            progress.advance(len(found))

        run_needles(model, needles.instances, deliver, intervention=intervention, share=share, max_tokens=max_tokens)
    else:
        for each in needles.instances:
            steps = len(each.answer) if keep in ("exact", "share") else MAX_STEPS
            outcome = decode_needle(model, each, steps=steps, intervention=intervention)
            produced = outcome.produced.tolist()
            right = sum(a == b for a, b in zip(each.answer, produced, strict=False))
            row = {"exact": tuple(produced) == each.answer, "correct": right / len(each.answer)}
            if keep in DECODED:
                row["rouge1"] = recall_of(model, each, produced)
                row["contained"] = contains(written(model, produced), each.answer_text or written(model, each.answer))
            detector.add(layers, _scores(each, outcome), answered(row, keep))
            progress.advance()
    settings = {
        "keep": keep,
        "procedure": procedure,
        "intervention": None if intervention is None else str(intervention),
        "share": share,
    }
    return head_scores(model, needles, detector.tables()["retrieval"], settings)


def _scores(needle: NeedleInstance, outcome: Outcome) -> CopyScores:
    if outcome.top_key is None:
        raise InputError("The outcome holds no strongest keys; run the needles with keys=True.")
    return copy_scores(outcome.top_key, outcome.produced, torch.tensor(needle.ids), needle.span)


def head_scores(
    model: TransformerBridge, needles: NeedleSet, frame: pd.DataFrame, settings: Mapping[str, Any]
) -> HeadScores:
    """The detector's table with definitions, provenance and a warning where nothing was kept."""
    kept = int(frame["n_kept"].iloc[0]) if len(frame) else 0
    warnings = list(needles.meta.get("notes", []))
    if not kept:
        warnings.append(
            f"None of {len(needles)} prompts passes the filter {settings['keep']!r} ({RULES[settings['keep']]}), so "
            "retrieval scores are not applicable; use shorter or easier needles, another filter, or read the "
            "unfiltered scores."
        )
    meta = {
        **needle_header(model, needles),
        "needles": dict(needles.meta),
        "settings": dict(settings),
        "n_kept": kept,
        "n_instances": len(needles),
        "warnings": warnings,
    }
    return HeadScores(frame, {metric.name: metric for metric in METRICS}, meta)


def needle_header(model: TransformerBridge, needles: NeedleSet) -> dict[str, Any]:
    """Versions, model and tokens of a run on needles."""
    lengths = [len(each.ids) for each in needles.instances]
    # the first tokens say all about the BOS; naming every token of every prompt would take longer than the passes
    found = header(model, tokenize(model, [each.ids[:1] for each in needles.instances]))
    found["tokens"] |= {"n_tokens": sum(lengths), "min_length": min(lengths), "max_length": max(lengths)}
    bos = needles.meta.get("bos")
    if bos is not None:
        found["tokens"]["bos"]["statement"] = bos["statement"]
        added = found["tokens"]["bos"]["added_by"] == "caller" and not bos["statement"].startswith("The chat template")
        found["tokens"]["bos"]["added_by"] = "sinklens" if added else found["tokens"]["bos"]["added_by"]
    return found
