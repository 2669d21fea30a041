"""Answers that are kept as they come, so that an interrupted calibration goes on where it stopped."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import ResultError
from sinklens.interventions import Intervention
from sinklens.results.files import write_atomically
from sinklens.studies.calibration.classification import ClassificationTask, TaskScores, score_task

FILE = "scores.jsonl"


class KeptScores:
    """:func:`score_task` with a memory on disk: what was answered before is read, not computed.

    A line holds the answers to one set of prompts under one intervention. A line that was torn by an interruption is
    left out. The first line says what the answers belong to.

    Args:
        directory: Where ``scores.jsonl`` lies.
        spec: What the run was asked for: model, prompts, settings. Answers of anything else are refused.
        restart: Throw away what lies there.

    Attributes:
        kept: How many sets of answers were there from before.
        fresh: Whether the latest answers came from the model, not from the file.

    Raises:
        ResultError: Answers of another run lie there, or the place cannot be written.
    """

    def __init__(self, directory: Path, spec: dict[str, Any], *, restart: bool = False) -> None:
        self.path = directory / FILE
        head = json.dumps({"spec": spec}, sort_keys=True)
        self._known: dict[str, TaskScores] = {}
        lines = [] if restart or not self.path.is_file() else self.path.read_text("utf-8").splitlines()
        if lines and lines[0] != head:
            raise ResultError(
                f"{directory} holds answers of another calibration (another model, other prompts or settings); name "
                "another directory, or --restart to throw them away."
            )
        for line in lines[1:]:
            try:
                row = json.loads(line)
                values = (np.array(row["valid"], bool), np.array(row["correct"], bool), np.array(row["entropy"], float))
            except (ValueError, KeyError):
                continue
            self._known[row["key"]] = TaskScores(*values)
        self.kept, self.fresh = len(self._known), True
        try:
            directory.mkdir(parents=True, exist_ok=True)
            whole = [head, *(_line(key, scores) for key, scores in self._known.items())]
            write_atomically(self.path, ("\n".join(whole) + "\n").encode())
        except OSError as error:
            raise ResultError(
                f"Cannot work in {directory}: {error.strerror or error}; choose another place."
            ) from error

    def __call__(
        self,
        model: TransformerBridge,
        task: ClassificationTask,
        intervention: Intervention | None = None,
        *,
        batch_size: int = 8,
    ) -> TaskScores:
        """The answers, from the file or from the model."""
        change = "" if intervention is None else intervention.to_json()
        rows = [task.prompts.ids[at, :length].tolist() for at, length in enumerate(task.prompts.lengths.tolist())]
        content = json.dumps([change, rows, task.labels, task.answers])
        key = hashlib.sha256(content.encode()).hexdigest()
        self.fresh = key not in self._known
        if self.fresh:
            self._known[key] = score_task(model, task, intervention, batch_size=batch_size)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(key, self._known[key]) + "\n")
        return self._known[key]

    def remove(self) -> None:
        """Take the file away, when the result is there."""
        self.path.unlink(missing_ok=True)


def _line(key: str, scores: TaskScores) -> str:
    values = {"valid": scores.valid.tolist(), "correct": scores.correct.tolist(), "entropy": scores.entropy.tolist()}
    return json.dumps({"key": key, **values})
