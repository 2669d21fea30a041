"""The main job: run the criteria one after another, keep what is finished, join and compare."""

import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import plan_for
from sinklens.detectors.base import Metric
from sinklens.detectors.head_scores import HeadScores
from sinklens.errors import InputError, ResultError, SinkLensError
from sinklens.evidence.controls import all_heads
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.sequences import choose_sequences
from sinklens.results import RunFolder
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress, Share
from sinklens.results.run_folder import ANEW
from sinklens.studies.ablation.recipe import model_identity
from sinklens.studies.head_roles.criteria import CRITERIA, USUAL, missing_scores
from sinklens.studies.head_roles.result import FORMAT, WORK, Roles
from sinklens.studies.head_roles.rules import Rule
from sinklens.studies.head_scores.scoring_pass import run_passes

BESIDE, COMPARING = 0.1, 500.0
"""What one more criterion in a pass takes, as a share of it; and what comparing all of them takes, in tokens."""


@checked
@usual_torch()
def find_roles(
    model: AnyModel,
    *,
    tokenizer: Any = None,
    scores: Sequence[str] | None = None,
    given: Mapping[str, HeadScores] | None = None,
    texts: str | Sequence[str] | None = None,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    max_sequences: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    rules: Sequence[Rule] = (),
    top: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    restart: bool = False,
    progress: Progress = SILENT,
) -> Roles:
    """Every head's roles by several published criteria, in one table, and where the criteria agree.

    ::

        found = find_roles("induction-2l", scores=("retrieval", "pattern", "sinks"), out="runs/roles")
        found.roles["retrieval"], found.agreement()

    A criterion that fails or does not apply becomes a warning, and its scores are NaN; the others go on.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        tokenizer: For a Hugging Face model.
        scores: Which criteria run, of :data:`CRITERIA`; default :data:`USUAL`, the fast ones. May be empty when
            ``given`` is not.
        given: Further scores of this model by name, such as published ones that :func:`read_scores` read.
        texts: For the criteria that run on texts; default: the built-in corpus that fits the model.
        bos: As for :func:`sinklens.tokenize`.
        max_tokens: Longest text.
        max_sequences: Draw at most this many sequences from all over the texts; default: what each criterion takes.
        options: Further arguments of single criteria, such as ``{"pattern": {"block": 32}}``.
        rules: Label rules in the place of the usual ones for the same score.
        top: Size of the top sets that are compared; default: that of the smaller labelled set.
        seed: Of the criteria that draw something, and of the bootstrap.
        out: Keep each finished criterion here and save the result; the same call goes on where it was interrupted.
        restart: Replace what another run left in ``out`` instead of refusing it.
        progress: Told of every criterion, and how it goes on.

    Returns:
        A :class:`Roles`.

    Raises:
        InputError: An unknown criterion, options for one that does not run, or no criterion gave any score.
        ResultError: ``out`` cannot be written, or holds another run.

    Cost: the usual ones are a few forward passes each; ``streaming`` learns by gradient, and ``importance`` and
    ``active_dormant`` take about half a forward pass for every head and text.
    """
    scores = USUAL if scores is None else scores
    unknown = [name for name in scores if name not in CRITERIA]
    if unknown or not (scores or given):
        raise InputError(f"Unknown criteria {', '.join(unknown) or '(none)'}; expected some of {', '.join(CRITERIA)}.")
    if top is not None and top < 1:
        raise InputError(f"top must be at least 1, got {top}.")
    wrong = [name for name in options or {} if name not in scores]
    if wrong:
        raise InputError(f"There are options for {', '.join(wrong)}, which does not run; add it to scores.")
    taken = sorted({*scores} & {*(given or {})})
    if taken:
        raise InputError(f"Given scores need names of their own, {taken[0]!r} is measured here; call them differently.")
    started = time.perf_counter()
    model = as_bridge(model, tokenizer=tokenizer)
    chosen = None
    if any(CRITERIA[name].on_texts for name in scores):  # what the caller gave is wrong or right for all of them
        chosen = choose_sequences(model, texts, bos=bos, max_tokens=max_tokens, max_sequences=max_sequences, seed=seed)
    heads = all_heads(model)
    folder = None if out is None else RunFolder(Path(out), FORMAT, WORK)
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(folder.locked())
            folder.begin(model_identity(model), restart)
            folder.note()
        words = {"texts": texts, "bos": bos, "max_tokens": max_tokens, "max_sequences": max_sequences}
        notes: list[str] = []
        failed: dict[str, str] = {}
        named = dict.fromkeys(scores)
        own = {name: _options(name, words, dict((options or {}).get(name, {})), seed) for name in named}
        n_tokens = None if chosen is None else int(chosen[0].lengths.sum())
        all_texts = max_sequences is not None
        works = {name: CRITERIA[name].work(len(heads), n_tokens, all_texts=all_texts) for name in named}
        parts = {} if folder is None else load_finished(folder, own)
        left = [name for name in named if name not in parts]
        alike = [name for name in left if CRITERIA[name].plan is not None and not (options or {}).get(name)]
        for name in alike[1:]:
            works[name] *= BESIDE
        progress.begin("Measuring criteria", sum(works.values()) + COMPARING)
        progress.skip(sum(works[name] for name in parts))
        if chosen is not None and len(alike) > 1:
            progress.step(f"{', '.join(alike)}: one pass over the texts")
            share = Share(progress, sum(works[name] for name in alike))
            together = _measure_together(model, alike, chosen, {"max_tokens": max_tokens, "seed": seed}, share)
            for name, of_texts in together.items():
                _keep(folder, name, own[name], of_texts)
            parts |= together
        for name in [name for name in left if name not in parts]:
            progress.step(f"{len(parts) + 1} of {len(named)}, {name}: {CRITERIA[name].about}")
            share = Share(progress, works[name])
            try:
                parts[name] = CRITERIA[name].run(model, own[name], share)
                _keep(folder, name, own[name], parts[name])
            except ResultError:
                raise  # the folder: going on would cost the results of the others
            except (SinkLensError, RuntimeError, MemoryError) as error:  # what a model or a machine cannot do
                kind = "" if isinstance(error, SinkLensError) else f"{type(error).__name__}: "
                notes.append(f"The criterion {name} gave no scores: {kind}{error}")
                warnings.warn(notes[-1], stacklevel=2)
                failed[name] = f"{kind}{error}"
                parts[name] = missing_scores(CRITERIA[name], heads, failed[name])
            share.finish()
        parts = {name: parts[name] for name in named}
        if len(failed) == len(parts) and not given:
            raise InputError(f"No criterion gave any score. {' '.join(notes)}")
        parts |= dict(given or {})
        facts = header(model, plan=plan_for(model))
        progress.step("Comparing criteria")
        last = Share(progress, COMPARING)
        found = Roles.of(parts, model=facts["model"], rules=rules, top=top, seed=seed, progress=last)
        last.finish()
        found.meta.update(facts)
        found.meta.update(warnings=notes + found.meta["warnings"], seconds=time.perf_counter() - started)
        found.meta["settings"] |= {"scores": list(scores), "given": [*(given or {})]}
        if folder is not None:
            folder.complete(found, keep_work=True)
        return found


def _options(name: str, words: Mapping[str, Any], own: dict[str, Any], seed: int) -> dict[str, Any]:
    shared = {key: value for key, value in words.items() if value is not None} if CRITERIA[name].on_texts else {}
    return {**shared, "seed": seed} | own


def _measure_together(
    model: TransformerBridge,
    names: Sequence[str],
    chosen: tuple[TokenBatch, str],
    words: Mapping[str, Any],
    progress: Progress,
) -> dict[str, HeadScores]:
    """Scores of criteria that look at the same texts, from one pass.

    Those that need other tokens are left out, and all of them where the pass fails: each is then measured by itself,
    and tells what it fails of.
    """
    batch, source = chosen
    try:
        planned = {name: plan(model, batch, source, **words) for name in names if (plan := CRITERIA[name].plan)}
        same = {name: each for name, each in planned.items() if each.batch is batch}
        found = run_passes(model, [*same.values()], progress=progress)
    except (SinkLensError, RuntimeError, MemoryError):
        return {}
    return {name: CRITERIA[name].only_scores(scores) for name, scores in zip(same, found, strict=True)}


def _keep(folder: RunFolder | None, name: str, options: Mapping[str, Any], scores: HeadScores) -> None:
    if folder is not None:
        save_scores(folder, name, options, scores)


def load_finished(folder: RunFolder, options: Mapping[str, Mapping[str, Any]]) -> dict[str, HeadScores]:
    """What an earlier run finished, by criterion."""
    found = {name: load_scores(folder, name, own) for name, own in options.items()}
    return {name: scores for name, scores in found.items() if scores is not None}


def load_scores(folder: RunFolder, name: str, options: Mapping[str, Any]) -> HeadScores | None:
    """What an earlier run found with the same options; ``None`` without, or when it is damaged.

    Raises:
        ResultError: The scores there were made with other options.
    """
    part = folder.load(name)
    if part is None:
        return None
    if part.meta["options"] != _described(options):
        raise ResultError(
            f"{folder.directory} holds scores of {name} made with other options; name another directory, or {ANEW}."
        )
    metrics = {column: Metric(**each) for column, each in part.meta["metrics"].items()}
    return HeadScores(part.tables["scores"], metrics, part.meta["meta"])


def save_scores(folder: RunFolder, name: str, options: Mapping[str, Any], scores: HeadScores) -> None:
    """Keep finished scores.

    Raises:
        ResultError: The place cannot be written.
    """
    metrics = {column: {"name": each.name, **each.as_dict()} for column, each in scores.metrics.items()}
    meta: dict[str, Any] = {"options": _described(options), "metrics": metrics, "meta": dict(scores.meta)}
    folder.save(name, {"scores": scores.to_dataframe()}, meta=meta)


def _described(options: Mapping[str, Any]) -> str:
    text = json.dumps(_plain(options), sort_keys=True)
    return text if len(text) <= 400 else hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
