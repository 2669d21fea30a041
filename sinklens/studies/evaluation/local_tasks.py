"""Task files of your own: labelled prompts in JSON lines."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinklens.errors import InputError
from sinklens.models.reading import named_text


@dataclass(frozen=True)
class LocalTask:
    """Prompts with choices, of which one is right.

    Attributes:
        name: The file's name without its ending.
        rows: ``prompt``, ``choices`` and ``answer`` (the number of the right choice, from 0) of each.
    """

    name: str
    rows: tuple[dict[str, Any], ...]

    def config(self) -> dict[str, Any]:
        """The task as lm-evaluation-harness takes it: multiple choice, accuracy, a space before each choice."""

        def dataset(**_: object) -> Any:
            import datasets

            return {"test": datasets.Dataset.from_list(list(self.rows))}

        return {
            "task": self.name,
            "custom_dataset": dataset,
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{prompt}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": " ",
            "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in METRICS],
        }


METRICS = ("acc", "acc_norm")


def read_task(path: str | Path) -> LocalTask:
    """Read a task file: one JSON object a line, with ``prompt``, ``choices`` and ``answer``.

    ``answer`` is the number of the right choice, counted from 0, or the choice itself. Empty lines are skipped.

    Raises:
        InputError: No such file, or a line that is something else; the sentence says which.
    """
    path = Path(path)
    lines = named_text(path, "The task").splitlines()
    rows = [_row(line, f"{path.name}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"{path} holds no prompt; expected JSON lines with prompt, choices and answer.")
    return LocalTask(path.stem, tuple(rows))


def _row(line: str, where: str) -> dict[str, Any]:
    expected = 'expected an object such as {"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}'
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: {expected}, got {line[:60]!r}.") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise InputError(f"{where}: {expected}, got {line[:60]!r}.")
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise InputError(f"{where}: choices must be at least two texts, got {choices!r}.")
    if len(set(choices)) < len(choices):
        raise InputError(f"{where}: two choices are the same: {choices!r}.")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise InputError(f"{where}: answer must be one of the choices or its number from 0, got {answer!r}.")
    return {"prompt": row["prompt"], "choices": choices, "answer": answer}
