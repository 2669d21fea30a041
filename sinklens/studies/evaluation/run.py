"""Evaluates a model on tasks as it is, under interventions, and under random controls of equal budget."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sinklens.arguments import checked
from sinklens.errors import InputError, SinkLensError
from sinklens.evidence.controls import all_heads, random_head_sets
from sinklens.interventions import Intervention
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice
from sinklens.models.torch_state import usual_torch
from sinklens.policies import Policy
from sinklens.policies.matched_random import MatchedRandom
from sinklens.results import RunFolder
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.ablation.recipe import model_identity
from sinklens.studies.evaluation.harness import missing_harness, run_tasks
from sinklens.studies.evaluation.local_tasks import LocalTask, read_task
from sinklens.studies.evaluation.result import CLEAN, FORMAT, WORK, TaskScores, summarise_documents
from sinklens.studies.evaluation.scorer import TextScorer
from sinklens.wording import several


@checked
@usual_torch()
@torch.no_grad()
def evaluate_tasks(
    model: AnyModel,
    tasks: Sequence[str | Path],
    interventions: Mapping[str, Intervention] | None = None,
    *,
    controls: int = 3,
    limit: int | None = None,
    fewshot: int | None = None,
    chat: bool = False,
    bos: BosChoice = "auto",
    batch_size: int = 8,
    out: str | Path | None = None,
    restart: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
) -> TaskScores:
    """Scores of lm-evaluation-harness for a model as it is, under interventions, and under random controls.

    ::

        found = evaluate_tasks(model, ["my_task.jsonl"], {"h2o": H2O(32, 32)})
        found.verdict

    The controls have the budget of the change: for heads, as many random other heads of the same layers; for a policy,
    as many random keys in every head and row. Differences are paired over documents.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes, with a tokenizer. It is the same afterwards.
        tasks: Names of the harness, whose data it fetches, and files ``NAME.jsonl`` of your own (see
            :func:`~sinklens.studies.evaluation.local_tasks.read_task`).
        interventions: By name; policies are interventions.
        controls: Random controls of each.
        limit: Documents of each task, the first ones.
        fewshot: Solved examples before each document; default: the task's own number.
        chat: Whether each context is the user's turn in the tokenizer's chat template, examples the turns before it.
        bos: As for :func:`sinklens.tokenize`; what it adds stands before every context.
        batch_size: Sequences in one forward pass.
        out: Directory for the work and the result; an evaluation that was killed goes on there.
        restart: Throw away what ``out`` holds of another or an unfinished evaluation.
        seed: Of controls, examples and bootstrap.
        progress: Told in conditions.

    Raises:
        SinkLensError: The harness is not installed.
        InputError: No task, a task that does not exist, an intervention that does not fit, a rule that looks ahead, or
            a chat without a template.
        ResultError: ``out`` holds something else.

    Cost: every document and choice is one forward pass for each condition.
    """
    problem = missing_harness()
    if problem is not None:
        raise SinkLensError(problem)
    if not tasks:
        raise InputError("Expected at least one task: a name of lm-evaluation-harness, or a file NAME.jsonl.")
    if batch_size < 1 or controls < 0 or (limit is not None and limit < 1):
        raise InputError(f"Expected counts from 1 (controls from 0), got {batch_size}, {limit} and {controls}.")
    folder = None if out is None else RunFolder(Path(out), FORMAT, WORK)
    if folder is not None:
        folder.check()  # before the work, not after it
    bridge = as_bridge(model)
    read = [read_task(each) if str(each).endswith(".jsonl") else str(each) for each in tasks]
    names = [each if isinstance(each, str) else each.name for each in read]
    if len(set(names)) < len(names):
        raise InputError(f"Two tasks have one name: {', '.join(names)}.")
    conditions, notes = _conditions(bridge, dict(interventions or {}), controls, seed)
    changes: dict[str, Intervention | None] = {row["condition"]: row.pop("change") for row in conditions}
    scorers = {name: TextScorer(bridge, change, bos, batch_size) for name, change in changes.items()}
    first = next(iter(scorers.values()))
    if chat:
        first.chat([{"role": "user", "content": "Hello."}])  # refused before the work
    described = {name: None if change is None else json.loads(change.to_json()) for name, change in changes.items()}
    spec = {
        "model": model_identity(bridge),
        "tasks": [each if isinstance(each, str) else {"name": each.name, "rows": each.rows} for each in read],
        "conditions": described,
        "limit": limit,
        "fewshot": fewshot,
        "bos": str(bos),
        "seed": seed,
        **({"chat": True} if chat else {}),
    }
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(folder.locked())
            if folder.finished and not restart:
                found = TaskScores.load(folder.directory)
                folder.begin(spec, held=found.meta["spec"])
                return found
            folder.note(folder.begin(spec, restart))
        about = f"{several(len(scorers), 'condition')} on {', '.join(names)}."
        progress.begin("Evaluating on tasks", len(scorers), about)
        frames, options = [], {"limit": limit, "fewshot": fewshot, "chat": chat, "seed": seed}
        for number, (name, scorer) in enumerate(scorers.items()):
            frames.append(_documents(name, number, scorer, read, folder, progress, options))
        documents = pd.concat(frames, ignore_index=True)
        meta = {
            **header(bridge),
            "bos": first.statement,
            "conditions": described,
            "tasks": names,
            "harness": _version(),
            "notes": notes,
            "spec": spec,
            "settings": {**options, "bos": str(bos), "batch_size": batch_size},
        }
        scores = summarise_documents(documents, pd.DataFrame(conditions), seed)
        result = TaskScores(meta, {"scores": scores, "documents": documents})
        if folder is not None:
            folder.complete(result)
        return result


def _documents(
    name: str,
    number: int,
    scorer: TextScorer,
    tasks: Sequence[str | LocalTask],
    folder: RunFolder | None,
    progress: Progress,
    options: Mapping[str, Any],
) -> pd.DataFrame:
    """Every document's scores under one condition: measured, or found in the folder."""
    kept = None if folder is None else folder.load(f"{number:05d}")
    if kept is not None:
        progress.skip(1)
        return kept.tables["documents"]
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        step = min(share, 1 - done)  # a condition is one unit, however many kinds of questions its tasks ask
        done += step
        progress.advance(step)

    found = run_tasks(scorer, tasks, **options, advance=advance)
    progress.advance(1 - done)
    found.insert(0, "condition", name)
    if folder is not None:
        folder.save(f"{number:05d}", {"documents": found})
    return found


def _conditions(
    bridge: Any, interventions: dict[str, Intervention], controls: int, seed: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows condition, kind, of, change; and what is to be said of the controls."""
    rows: list[dict[str, Any]] = [{"condition": CLEAN, "kind": "unchanged", "of": "", "change": None}]
    notes: list[str] = []
    for name, change in interventions.items():
        if not name or name == CLEAN or not isinstance(change, Intervention):
            raise InputError(f"Expected interventions by a name other than {CLEAN!r}, got {name!r}: {change!r}.")
        if isinstance(change, Policy) and change.scope == "global":
            raise InputError(f"{name} chooses by what comes later in the text, so its scores would mean nothing.")
        rows.append({"condition": name, "kind": "change", "of": "", "change": change})
        found, note = _controls(bridge, change, controls, seed)
        notes += [f"{name}: {note}"] if note and controls else []
        for number, control in enumerate(found, 1):
            label = f"{name}, random {number}"
            rows.append({"condition": label, "kind": "control", "of": name, "change": control})
    return rows, notes


def _controls(bridge: Any, change: Intervention, count: int, seed: int) -> tuple[list[Intervention], str]:
    """Random controls of equal budget, and why there are none or other ones."""
    if not count:
        return [], ""
    if isinstance(change, Policy):
        if type(change).change_call is not Policy.change_call:
            return [], "it changes keys and values, so there is no control of equal budget."
        return [MatchedRandom(change, seed=seed * 1000 + number) for number in range(count)], ""
    heads = getattr(change, "heads", None)
    if not isinstance(heads, tuple) or not heads:
        return [], "it names no heads, so there is no control of equal budget."
    drawn = random_head_sets(all_heads(bridge), heads, draws=count, seed=seed)
    return [replace(change, heads=others) for others in drawn.sets], " ".join(drawn.notes)  # type: ignore[call-arg]


def _version() -> str:
    from importlib.metadata import version

    return f"lm_eval {version('lm_eval')}"
