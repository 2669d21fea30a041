"""Right and wrong answers from a CSV file, for logit differences."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sinklens.errors import InputError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from sinklens.evidence.effects import Answers
    from sinklens.models.tokens import TokenBatch

COLUMNS = ("text", "sequence", "position", "correct", "wrong")


@dataclass(frozen=True)
class AnswerTable:
    """The rows of an answers file.

    Attributes:
        path: Where it lies.
        rows: Its columns as text.
    """

    path: Path
    rows: pd.DataFrame

    @classmethod
    def read(cls, path: Path) -> "AnswerTable":
        """Read a CSV file with the columns ``correct`` and ``wrong`` (each one token, as text with its leading space).

        Further columns: ``text``, the prompt itself; or ``sequence``, the number of the text that a row belongs to
        (without it the rows are in order). ``position`` is the token whose prediction is read, default the last one.

        Raises:
            InputError: No such file, or not these columns.
        """
        try:
            rows = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except FileNotFoundError as error:
            raise InputError(f"There is no answers file {path}; check the path given to --answers.") from error
        except (OSError, ValueError) as error:
            raise InputError(f"The answers {path} cannot be read: {' '.join(str(error).split())[:200]}.") from error
        unknown = [column for column in rows.columns if column not in COLUMNS]
        if unknown or not {"correct", "wrong"} <= {*rows.columns} or rows.empty:
            raise InputError(
                f"{path} must have rows with the columns correct and wrong, and may have text or sequence, and "
                f"position; it has {len(rows)} rows of {', '.join(rows.columns)}."
            )
        return cls(path, rows)

    @property
    def texts(self) -> list[str] | None:
        """The prompts, if the file has them."""
        return self.rows["text"].tolist() if "text" in self.rows else None

    def answers(self, model: "TransformerBridge", batch: "TokenBatch") -> "Answers":
        """The answers for the tokenized texts.

        Raises:
            InputError: An answer that is not one token, a sequence that does not exist, or a wrong position.
        """
        import torch

        from sinklens.evidence.effects import NO_ANSWER, Answers

        n = len(batch)
        if "sequence" not in self.rows and len(self.rows) != n:
            raise InputError(f"{self.path} has {len(self.rows)} rows for {n} sequences; add a column sequence.")
        position, correct, wrong = ([NO_ANSWER] * n, [0] * n, [0] * n)
        for index, row in enumerate(self.rows.to_dict("records")):
            sequence = self._number(row, "sequence", index, n)
            length = int(batch.lengths[sequence])
            asked = bool(row.get("position"))
            position[sequence] = self._number(row, "position", 0, length) if asked else length - 1
            correct[sequence], wrong[sequence] = (self._token(model, str(row[name])) for name in ("correct", "wrong"))
        return Answers(torch.tensor(position), torch.tensor(correct), torch.tensor(wrong))

    def _number(self, row: dict[Any, Any], name: str, default: int, stop: int) -> int:
        text = str(row.get(name, default))
        if not text.strip().isdecimal() or int(text) >= stop:
            raise InputError(f"{self.path}: {name} must be a number from 0 to {stop - 1}, got {text!r}.")
        return int(text)

    def _token(self, model: "TransformerBridge", text: str) -> int:
        tokenizer: Any = model.tokenizer
        try:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        except Exception as error:  # the tokenizers library has no class of its own for this
            raise InputError(f"{self.path}: the answer {text!r} cannot be tokenized: {error}.") from error
        if len(ids) != 1:
            raise InputError(
                f"{self.path}: the answer {text!r} is {len(ids)} tokens for this model; a logit difference needs "
                "answers of one token (mind the leading space)."
            )
        return int(ids[0])
