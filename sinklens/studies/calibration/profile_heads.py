"""One head at a time: what an intervention on it alone does to the answers."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.interventions import Intervention
from sinklens.interventions.heads import Head, head_name
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.calibration.candidates import candidate_heads
from sinklens.studies.calibration.classification import ClassificationTask, Scorer, score_task, tell
from sinklens.studies.calibration.task_scores import TaskScores

Objective = Literal["accuracy", "entropy"]
ROUNDING = {"accuracy": 0.0, "entropy": 1e-5}
"""Gains up to this are no gains."""


@checked
def profile_heads(
    model: TransformerBridge,
    task: ClassificationTask,
    intervention: Intervention,
    *,
    units: Sequence[Sequence[Head]] | None = None,
    objective: Objective = "accuracy",
    batch_size: int = 8,
    progress: Progress = SILENT,
    score: Scorer = score_task,
) -> pd.DataFrame:
    """Apply an intervention to one head (or set of heads) at a time and see whether the answers get better.

    With ``ScaleKeys(keys=0, gamma=2.0)`` this is ZeroTuning's first step: a head is up-effective if more attention to
    the initial token makes the answers better, down-effective if it makes them worse. Choose on other prompts than you
    report on; this function does not split.

    Args:
        model: The bridge; it is the same afterwards.
        task: Prompts; their answers do not matter for ``objective="entropy"``.
        intervention: Any with a field ``heads``, which names the candidates.
        units: Sets of heads to try, see :func:`head_units`; default: every candidate alone.
        objective: What better means: more right answers, or a lower mean next-token entropy.
        batch_size: Prompts in one forward pass.
        progress: Told how it goes on, in prompts.
        score: What lets the model answer; one that keeps answers makes the work resumable.

    Returns:
        The unchanged model first, then one row per unit: stage (``"unchanged"``, ``"heads"``), heads (names), gamma
        (NaN if there is none), n, accuracy, valid_rate, accuracy_given_valid, entropy, gain (in the objective; positive
        is better), and effect: ``"up"``, ``"down"`` or ``"none"`` (up to 1e-5 nats of entropy are rounding).

    Raises:
        InputError: An intervention without heads, or with heads that the model lacks.

    Cost: a forward pass per prompt and unit.
    """
    candidates = candidate_heads(model, intervention)
    units = head_units(candidates) if units is None else units
    before = score(model, task, batch_size=batch_size)
    rows = [search_row("unchanged", (), math.nan, before, before, objective)]
    progress.begin("Profiling heads", len(task) * (1 + len(units)))
    tell(progress, score, task)
    for unit in units:
        changed = intervention.on(unit)
        after = score(model, task, changed, batch_size=batch_size)
        rows.append(search_row("heads", unit, getattr(changed, "gamma", math.nan), after, before, objective))
        tell(progress, score, task)
    return pd.DataFrame(rows)


def head_units(heads: Iterable[Head], per: Literal["head", "index"] = "head") -> list[tuple[Head, ...]]:
    """Heads to try one at a time: each alone, or one head index in all layers (as the notebook of ZeroTuning does).

    >>> head_units([(0, 0), (0, 1), (1, 0)], "index")
    [((0, 0), (1, 0)), ((0, 1),)]
    """
    listed = sorted(heads)
    if per == "head":
        return [(head,) for head in listed]
    return [tuple(head for head in listed if head[1] == index) for index in sorted({head[1] for head in listed})]


def search_row(
    stage: str, heads: Sequence[Head], gamma: float, after: TaskScores, before: TaskScores, objective: Objective
) -> dict[str, Any]:
    """A row of a search: how the changed model answered, and what that gains in the objective."""
    gain = before.mean_entropy - after.mean_entropy
    if objective == "accuracy":
        gain = after.rates.accuracy - before.rates.accuracy
    effect = "none" if abs(gain) <= ROUNDING[objective] else "up" if gain > 0 else "down"
    names = ",".join(map(head_name, heads))
    return {"stage": stage, "heads": names, "gamma": float(gamma), **after.as_row(), "gain": gain, "effect": effect}
