"""A part of a sweep computed: a pure function of the model and of what the task holds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.evidence.effects import Answers, predicted_rows
from sinklens.interventions import Intervention
from sinklens.models.tokens import TokenBatch
from sinklens.passes.attribution import attribute_heads
from sinklens.passes.clean_start import SharedStart
from sinklens.passes.head_sets import run_head_sets
from sinklens.results.progress import SILENT, Silent
from sinklens.studies.ablation.parts import Part

COLUMNS = (
    "set", "sequence", "n_tokens", "clean_loss", "loss", "delta_loss", "kl", "top1_agreement", "clean_logit_diff",
    "logit_diff", "delta_logit_diff",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A part with all that is needed to compute it; can be pickled, and then shares no clean pass."""

    part: Part
    intervention: Intervention
    batch: TokenBatch
    answers: Answers | None
    rows: int
    shared: SharedStart | None = field(default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"shared": None}

    def run(self, model: TransformerBridge, on_share: Callable[[float], None] | None = None) -> pd.DataFrame:
        """Compute the part; see :func:`run_task`."""
        return run_task(model, self, on_share)


class _Shares(Silent):
    """Tells the share that is done to whoever waits for the part, in this process or another."""

    def __init__(self, on_share: Callable[[float], None]) -> None:
        self.on_share, self.all, self.done = on_share, 1.0, 0.0

    def begin(self, name: str, work: float, about: str = "") -> None:
        """So much work begins."""
        self.all, self.done = work, 0.0

    def advance(self, work: float = 1.0, note: str = "") -> None:
        """So much more is done."""
        self.done += work
        self.on_share(self.done / self.all)


def run_task(model: TransformerBridge, task: Task, on_share: Callable[[float], None] | None = None) -> pd.DataFrame:
    """Compute a part: one row per head set and sequence, with the columns ``COLUMNS``.

    Args:
        model: The bridge.
        task: The part and what it needs.
        on_share: Called now and then with the share that is done, from 0 to 1.

    Raises:
        InputError: The unchanged model's loss is not a number.
    """
    part, batch = task.part, task.batch
    n_sets = len(part.head_sets)
    if part.estimate:
        return _estimated(model, task)
    measured = run_head_sets(
        model,
        batch,
        task.intervention,
        part.head_sets,
        answers=task.answers,
        max_rows=task.rows,
        shared=task.shared,
        progress=SILENT if on_share is None else _Shares(on_share),
    )
    clean = {name: _plain(values)[None].repeat(n_sets, 0) for name, values in measured.clean.items()}
    changed = {name: _plain(values) for name, values in measured.changed.items()}
    unknown = np.isnan(clean["loss"]) & (clean["n_tokens"] > 0)
    if unknown.any():
        raise InputError(
            f"The unchanged model's loss on sequence {part.sequences[int(unknown[0].argmax())]} is not a number, so "
            "nothing can be compared with it; check its weights, or load it with --dtype float32."
        )
    return _table(
        part,
        {
            "n_tokens": clean["n_tokens"],
            "clean_loss": clean["loss"],
            "loss": changed["loss"],
            "delta_loss": changed["loss"] - clean["loss"],
            "kl": changed["kl"],
            "top1_agreement": changed["top1_agreement"],
            "clean_logit_diff": clean["logit_diff"],
            "logit_diff": changed["logit_diff"],
            "delta_logit_diff": changed["logit_diff"] - clean["logit_diff"],
        },
    )


def _estimated(model: TransformerBridge, task: Task) -> pd.DataFrame:
    part, batch, answers = task.part, task.batch, task.answers
    layers, heads = zip(*(heads[0] for heads in part.head_sets), strict=True)
    loss = attribute_heads(model, batch, task.intervention)[list(layers), list(heads)]
    missing = np.full(loss.shape, np.nan)
    columns = dict.fromkeys(COLUMNS[2:], missing)
    columns["n_tokens"] = _plain(predicted_rows(batch).sum(1))[None].repeat(len(layers), 0)
    columns["delta_loss"] = _plain(loss)
    if answers is not None:
        change = attribute_heads(model, batch, task.intervention, answers=answers, metric="logit_diff")
        columns["delta_logit_diff"] = _plain(change[list(layers), list(heads)])
    return _table(part, columns)


def _plain(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.double().cpu().numpy()
    return array


def _table(part: Part, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """Rows by set and sequence from columns ``[set sequence]``."""
    n_sets, n_sequences = len(part.head_sets), len(part.sequences)
    index = {"set": np.repeat(np.arange(n_sets), n_sequences), "sequence": np.tile(part.sequences, n_sets)}
    return pd.DataFrame(index | {name: values.ravel() for name, values in columns.items()}).astype(
        {"n_tokens": "int64"}
    )
