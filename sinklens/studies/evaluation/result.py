"""Task scores under interventions beside the unchanged model and random controls of equal budget."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sinklens.evidence.bootstrap import paired_interval
from sinklens.results.result import Result
from sinklens.wording import changed, several

FORMAT = "sinklens-task-scores"
WORK = "evaluation on tasks"
CLEAN = "unchanged"


@dataclass(frozen=True)
class TaskScores(
    Result,
    format=FORMAT,
    title="Task scores",
    newest=1,
    needs=("scores", "documents"),
    header=("conditions", "spec", "settings"),
):
    """What lm-evaluation-harness scores a model at, as it is, under interventions, and under their random controls.

    ``scores``, one row per condition, task and metric: ``condition`` (``"unchanged"``, the name of a change, or
    ``"NAME, random 1"``), ``kind`` (``"unchanged"``, ``"change"``, ``"control"``), ``of`` (the change that a control
    belongs to), ``task``, ``metric``, ``n`` (documents), ``value`` (their mean), ``delta`` against the unchanged model
    on the same documents with ``delta_low`` and ``delta_high`` (95 %, bootstrap over documents).

    ``documents``: every document's score: condition, task, doc, metric, value.

    Attributes:
        meta: Model, conditions as JSON, tasks, version of the harness, BOS, notes, settings.
        tables: By name.
    """

    @property
    def verdict(self) -> list[str]:
        """What each change does to each task's first metric, beside its controls."""
        return [*score_sentences(self.tables["scores"]), *self.meta.get("notes", ())]


def summarise_documents(documents: pd.DataFrame, conditions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The table ``scores`` from every document's scores.

    Args:
        documents: Rows by condition, task, doc and metric.
        conditions: Rows by condition: kind, of.
        seed: Of the bootstrap.
    """
    rows = []
    keys = documents[["task", "metric"]].drop_duplicates().itertuples(index=False)
    by: dict[Any, pd.DataFrame] = dict(list(documents.groupby(["condition", "task", "metric"])))
    for task, metric in keys:
        clean = by[CLEAN, task, metric].set_index("doc")["value"].sort_index()
        for claim in conditions.to_dict("records"):
            own = by[claim["condition"], task, metric].set_index("doc")["value"].sort_index()
            change = paired_interval((own - clean).to_numpy(dtype=np.float64), seed=seed)
            row = {**claim, "task": task, "metric": metric, "n": len(own), "value": float(own.mean())}
            rows.append(row | {"delta": change.value, "delta_low": change.low, "delta_high": change.high})
    return pd.DataFrame(rows)


def score_sentences(scores: pd.DataFrame) -> list[str]:
    """What the scores say, recomputable from their table: the first metric of every task."""
    found = []
    for task, rows in scores.groupby("task", sort=False):
        own = rows[rows["metric"] == rows["metric"].iloc[0]]
        clean = own[own["kind"] == "unchanged"].iloc[0]
        changes = own[own["kind"] == "change"].to_dict("records")
        head = f"{task}, {clean['metric']} over {several(clean['n'], 'document')}: {clean['value']:.3f} unchanged"
        if not changes:
            found.append(f"{head}.")
        for row in changes:
            controls = own[(own["kind"] == "control") & (own["of"] == row["condition"])]["delta"]
            found.append(
                f"{head}, {row['value']:.3f} under {row['condition']} ({_change(row)}){_beside(row, controls)}."
            )
    return found


def _change(row: dict[Hashable, Any]) -> str:
    return changed(row["delta"], row["delta_low"], row["delta_high"], 3)


def _beside(row: dict[Hashable, Any], controls: "pd.Series[float]") -> str:
    if controls.empty:
        return "; no control of equal budget"
    as_far = int((controls.abs() >= abs(row["delta"])).sum())
    return (
        f"; {several(len(controls), 'random control')} of equal budget: {controls.min():+z.3f} to "
        f"{controls.max():+z.3f}, {as_far} of them as far"
    )
