"""Answers that are kept as they come, so that an interrupted calibration goes on where it stopped."""

import hashlib
import json
from dataclasses import fields

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.interventions import Intervention
from sinklens.results import RunFolder
from sinklens.studies.calibration.classification import ClassificationTask, score_task
from sinklens.studies.calibration.task_scores import TaskScores


class KeptScores:
    """:func:`score_task` with a memory on disk: what was answered before is read, not computed.

    Args:
        folder: Where the calibration works; a part of it holds the answers to one set of prompts under one
            intervention.

    Attributes:
        kept: How many sets of answers were there from before.
        fresh: Whether the latest answers came from the model, not from the folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.kept, self.fresh = folder, len(folder.names()), True

    def __call__(
        self,
        model: TransformerBridge,
        task: ClassificationTask,
        intervention: Intervention | None = None,
        *,
        batch_size: int = 8,
    ) -> TaskScores:
        """The answers, from the folder or from the model."""
        change = "" if intervention is None else intervention.to_json()
        rows = [task.prompts.ids[at, :length].tolist() for at, length in enumerate(task.prompts.lengths.tolist())]
        name = hashlib.sha256(json.dumps([change, rows, task.labels, task.answers]).encode()).hexdigest()[:32]
        part = self.folder.load(name)
        self.fresh = part is None
        columns = [field.name for field in fields(TaskScores)]
        if part is not None:
            return TaskScores(*(part.tables["answers"][column].to_numpy() for column in columns))
        found = score_task(model, task, intervention, batch_size=batch_size)
        self.folder.save(name, {"answers": pd.DataFrame({column: getattr(found, column) for column in columns})})
        return found
