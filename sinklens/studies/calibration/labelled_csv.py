"""Labelled prompts from a CSV file: a text and its label in each row."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinklens.errors import InputError
from sinklens.models.builtin import data_dir
from sinklens.models.reading import readable

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from sinklens.models.tokens import BosChoice
    from sinklens.studies.calibration.classification import ClassificationTask

TEXT, LABEL = "text", "label"
PLACE = "{text}"


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with their labels.

    Attributes:
        texts: The texts.
        labels: The label of each.
        source: Where they are from.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        """Each label once, sorted."""
        return tuple(sorted(set(self.labels)))

    @classmethod
    def read(cls, path: str | Path | None = None, *, text: str = TEXT, label: str = LABEL) -> "LabelledTexts":
        """Read a CSV file with a header; without a path, the next-word prompts that sinklens brings along.

        Args:
            path: The file, UTF-8, fields separated by commas.
            text: Name of the column with the texts.
            label: Name of the column with the labels.

        Raises:
            InputError: No such file, no CSV, a column or a field that is missing, or fewer than two labels.
        """
        source = path is None
        path = data_dir() / "labelled" / "next_word.csv" if path is None else Path(path)
        try:
            with readable(path).open(encoding="utf-8-sig", newline="") as file:
                rows: list[dict[Any, Any]] = list(csv.DictReader(file, strict=True))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path} cannot be read as a CSV file of labelled texts: {error}.") from error
        if not rows:
            raise InputError(
                f"{path} has no rows; expected a header with {text},{label} and a labelled text in each row."
            )
        columns = [str(column) for column in rows[0] if column is not None]
        for needed in (text, label):
            if needed not in columns:
                raise InputError(
                    f"{path} has no column {needed!r} but {', '.join(map(repr, columns))}; name the columns with "
                    "--text-column and --label-column (text=, label=)."
                )
        for number, row in enumerate(rows, 2):
            if None in row or not (row[text] or "").strip() or not (row[label] or "").strip():
                raise InputError(
                    f"Row {number} of {path} is not a text with a label: {text} {row[text]!r}, {label} {row[label]!r}"
                    f"{', and more fields than the header has' if None in row else ''}."
                )
        found = cls(
            tuple(str(row[text]) for row in rows),
            tuple(str(row[label]).strip() for row in rows),
            "built-in: the next word in Shakespeare" if source else str(path.name),
        )
        if len(found.names) < 2:
            raise InputError(f"{path} has the one label {found.names[0]!r}; a choice needs at least two.")
        return found

    def some(self, count: int | None, seed: int = 0) -> "LabelledTexts":
        """At most ``count`` of the texts, drawn with the seed; in their order."""
        if count is None or count >= len(self.texts):
            return self
        kept = sorted(np.random.default_rng(seed).permutation(len(self.texts))[:count].tolist())
        return LabelledTexts(tuple(self.texts[at] for at in kept), tuple(self.labels[at] for at in kept), self.source)

    def check(self, template: str, answers: Mapping[str, Sequence[str]]) -> None:
        """Refuse a template without a place for the text, and answers for a label that there is not.

        Raises:
            InputError: One of these.
        """
        if PLACE not in template:
            raise InputError(f"The template must say where the text goes, with {PLACE}; got {template!r}.")
        unknown = sorted(set(answers) - set(self.names))
        if unknown:
            raise InputError(f"There is no label {unknown[0]!r}; the labels are {', '.join(map(repr, self.names))}.")

    def task(
        self,
        model: "TransformerBridge",
        *,
        template: str = PLACE,
        answers: Mapping[str, Sequence[str]] | None = None,
        bos: "BosChoice" = "auto",
    ) -> "ClassificationTask":
        """The prompts as a task of this model.

        Args:
            model: The bridge.
            template: What the model reads: ``{text}`` is where the text goes.
            answers: By label the spellings that count as its answer, each one token of the model. Default: the label
                with a space before it, and without, as far as each is one token.
            bos: As for :func:`sinklens.tokenize`.

        Raises:
            InputError: A template without ``{text}``, answers for a label that there is not, or a label without any
                spelling that is one token.
        """
        from sinklens.studies.calibration.classification import classification_task

        given = dict(answers or {})
        self.check(template, given)
        spelled = [list(given.get(name) or _spellings(model, name)) for name in self.names]
        prompts = [template.replace(PLACE, text) for text in self.texts]
        return classification_task(model, prompts, spelled, [self.names.index(name) for name in self.labels], bos=bos)


def _spellings(model: "TransformerBridge", label: str) -> list[str]:
    """A label with and without a space, as far as it is one token; neither twice."""
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise InputError("The model has no tokenizer, which labelled texts need.")
    found: dict[tuple[int, ...], str] = {}
    for spelling in (f" {label}", label):
        ids = tuple(tokenizer(spelling, add_special_tokens=False)["input_ids"])
        if len(ids) == 1:
            found.setdefault(ids, spelling)
    if not found:
        raise InputError(
            f"The label {label!r} is no single token of this model; name tokens that stand for it, as in "
            f"--answer '{label}= yes| Yes' (answers=)."
        )
    return list(found.values())
