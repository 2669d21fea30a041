"""Many sets of heads x interventions x texts: what each does to the predictions, in one table."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sinklens.arguments import checked
from sinklens.errors import InputError
from sinklens.evidence.controls import DRAWS
from sinklens.evidence.effects import NO_ANSWER, Answers, predicted_rows
from sinklens.interventions import Intervention
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.load import load
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.sequences import choose_sequences
from sinklens.results import RunFolder
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.ablation.executor_name import check_executor
from sinklens.studies.ablation.executors import loading_here, parse_executor
from sinklens.studies.ablation.interventions import Interventions, make_ablations, named_interventions, set_aside
from sinklens.studies.ablation.layout import check_batch_size
from sinklens.studies.ablation.question import Question
from sinklens.studies.ablation.recipe import ModelRecipe, check_finite
from sinklens.studies.ablation.result import FORMAT, WORK, Sweep
from sinklens.studies.ablation.run import SweepRun
from sinklens.studies.ablation.variants import OWN

__all__ = ["Sweep", "sweep"]


@checked
@usual_torch()
def sweep(
    model: AnyModel,
    interventions: Interventions | None = None,
    texts: str | Sequence[str] | None = None,
    *,
    tokens: TokenBatch | Ids | None = None,
    attention_mask: Any = None,
    tokenizer: Any = None,
    answers: Answers | None = None,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    split: bool = True,
    max_sequences: int | None = None,
    heads: object = None,
    groups: Mapping[str, object] | None = None,
    ranking: Sequence[object] | str | None = None,
    top: Sequence[int] | None = None,
    controls: int = DRAWS,
    rank_by: str = "delta_loss",
    approx: int = 0,
    out: str | Path | None = None,
    restart: bool = False,
    executor: str = "serial",
    loading: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    source: str | None = None,
    progress: Progress = SILENT,
) -> Sweep:
    """Change sets of heads in turn and measure what that does to the predictions on every sequence.

    ::

        result = sweep("bb-3l", "zero")  # every head on the built-in texts
        result.ranking()  # heads by their effect on the loss, with intervals
        result = sweep(model, ["mean", ScaleKeys(0, 0.5)], texts, ranking="own", out="runs/heads")

    The sets: every head by itself (default), given ``heads``, named ``groups`` changed as a whole, and the ``top`` k of
    a ``ranking`` together. Groups, top sets and given heads are compared with random sets of the same size and layers
    that hold none of their heads. The numbers are those of a forward pass under ``replace(intervention, heads=...)``
    for each set, see :func:`~sinklens.passes.head_sets.run_head_sets`.

    With ``out`` finished parts are kept there, and the same call goes on after any interruption with nothing computed
    twice but the part in hand; the table is bit for bit that of a run that was never interrupted. At the end the
    directory holds the result alone. A call of anything else is refused there, unless ``restart``.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        interventions: One or several with a field ``heads`` (whose value does not matter), or a way of ablation
            (``"zero"``, ``"mean"``, ``"resample"``, ``"uniform"``); as a dictionary they carry your labels. ``"mean"``
            puts in each head's mean over the swept texts, ``"resample"`` its outputs on one of the longest sequences,
            which is then left out. Default: ``"zero"``.
        texts: One or several texts, a sequence each; default: a built-in corpus that fits the model.
        tokens: Instead of texts: a :class:`TokenBatch`, a tokenizer's output, a tensor ``[batch pos]`` or lists of ids.
        attention_mask: For ids: 1 at real tokens.
        tokenizer: For a Hugging Face model.
        answers: For logit differences, one for each sequence.
        bos: As for :func:`sinklens.scan`, like ``max_tokens``, ``split``, ``max_sequences`` and ``source``.
        max_tokens: Longest sequence; default: the model's context.
        split: Cut long texts into sequences of ``max_tokens`` (not where there are answers, one for each text).
        max_sequences: Draw at most this many sequences from all over the texts; default: 100, and all of given tokens
            and of texts with answers.
        heads: ``"all"``, or heads such as ``["L5H1", (5, 2)]``, each changed by itself. Default: all heads, but none
            where groups or a ready ranking are given.
        groups: Heads by a name, changed together.
        ranking: Heads in order, for cumulative sets; ``"own"`` ranks the single heads of this very sweep (by
            ``rank_by``, for each intervention apart), which flatters the top sets a little: they were chosen on the
            texts that they are measured on.
        top: Sizes of the cumulative sets; default 1, 2, 4, ... up to half of all heads.
        controls: Random sets for each tested set; below 10 they say little.
        rank_by: ``"delta_loss"``, ``"kl"``, ``"top1_agreement"`` or ``"delta_logit_diff"``.
        approx: Estimate single heads by attribution patching and run only so many of them exactly (drawn at random), to
            measure the rank correlation. Groups and top sets are always exact.
        out: Directory for the work and the result; without it nothing is saved.
        restart: Throw away what ``out`` holds of another or an unfinished sweep.
        executor: ``"serial"``, ``"processes:N"``, or the address of a Dask scheduler, ``"tcp://host:8786"``. Their
            numbers agree to about 1e-6.
        loading: What :func:`sinklens.load` takes beside the name, for a model given by name and for workers:
            ``device`` (``"cuda:{i}"`` gives every process another GPU), ``dtype``, ``trust_remote_code``.
        batch_size: Sequences in a part; default: by memory and size of the model.
        seed: Of built-in corpus, controls, sample and bootstrap.
        source: What to call the texts in the provenance.
        progress: Told the plan, then in forward passes of one sequence.

    Raises:
        InputError: A head the model does not have, no usable sequence, an intervention that cannot be restricted to
            heads, an unknown executor, or a model whose own loss is not a number.
        ResultError: ``out`` holds something else, another sweep, or is in use.
        UnsupportedArchitectureError: The model has no attention.

    Cost: per intervention and sequence one clean forward pass and, for a set with first layer l of L, about
    ``(L - l) / L`` of one. Memory as the plan says.
    """
    started = time.perf_counter()
    folder = None if out is None else RunFolder(Path(out), FORMAT, WORK)
    if folder is not None:
        folder.check()
    check_executor(executor)
    check_batch_size(batch_size)
    asked = named_interventions(interventions)
    loading = dict(loading or {})
    if isinstance(model, str | os.PathLike) and tokenizer is None:
        model = load(model, **loading_here(executor, loading))
    model = as_bridge(model, tokenizer=tokenizer)
    check_finite(model)
    question = Question.ask(
        model,
        heads=heads,
        groups=groups,
        ranking=ranking,
        top=top,
        controls=controls,
        rank_by=rank_by,
        approx=approx,
        seed=seed,
    )
    if answers is not None and texts is not None:  # one for each text, in their order
        split, max_sequences = False, max_sequences or sys.maxsize
    chosen, source = choose_sequences(
        model, texts, tokens, bos, max_tokens, split, seed, source, max_sequences, attention_mask
    )
    if answers is not None:
        answers.check(chosen, int(model.cfg.d_vocab))
    reference = set_aside(asked, chosen, seed)
    rows = [index for index in measurable(chosen, answers) if index != reference]
    batch, answers = chosen.rows(rows), None if answers is None else answers.rows(rows)
    recipe = ModelRecipe.of(model, loading)
    spec = describe_sweep(recipe, batch, answers, asked, question, batch_size)
    run = SweepRun(model, batch, answers, question, parse_executor(executor, model), recipe, folder, spec, progress)
    with ExitStack() as stack:
        stack.callback(run.executor.close)
        if folder is not None:
            stack.enter_context(folder.locked())
            finished = run.begin(folder, restart)
            if finished is not None:
                return finished
        run.plan(lambda: make_ablations(asked, model, chosen, reference), batch_size)
        own = question.ranking == OWN and bool(question.top)
        n_later = len(question.top) * (1 + question.controls) * len(asked) if own else 0
        run.measure(1, {label: question.first_variants() for label in asked}, n_later)
        if own:
            run.measure(2, {label: question.own_variants(run.own_ranking(label)) for label in asked})
        facts = {"source": source, "not_measured": len(chosen) - len(batch)}
        return run.finish(facts, time.perf_counter() - started)


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
