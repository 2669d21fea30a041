"""The score file of the Retrieval_Head repository: ``{"layer-head": [score of each kept run, ...]}``."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.metric import Metric
from sinklens.detectors.retrieval_bands import band
from sinklens.errors import InputError
from sinklens.interventions.heads import Head, head_name
from sinklens.models.reading import named_json
from sinklens.results.files import write_atomically

RETRIEVAL_FILE = Metric(
    "retrieval",
    1,
    "mean over the kept runs of the copied share of the needle: answer steps whose top-1 key lies in the needle and is "
    "the token produced, divided by the needle's length; as the file's authors counted them (events, may exceed 1)",
    "Wu et al. 2025, arXiv 2404.15574; released head_score files",
)


@dataclass(frozen=True)
class RetrievalRuns:
    """Retrieval scores of every head in every kept run.

    Runs that the model answered wrongly are not in such a file; a model that answers none has an empty one.

    Attributes:
        runs: Score of each run by head, as many for each head; a number read from a file is written again as it was.
        name: What the scores are of.
    """

    runs: Mapping[Head, Sequence[float]] = field(repr=False)
    name: str = "retrieval runs"

    def __post_init__(self) -> None:
        """Refuse what is not one list of equally many scores for every head of a layers x heads grid."""
        if not self.runs:
            raise InputError(
                f"{self.name} holds no head: in the original code that is what a model leaves that answers no needle; "
                "take another model or easier needles."
            )
        layers, heads = (max(head[axis] for head in self.runs) + 1 for axis in (0, 1))
        missing = [(x, y) for x in range(layers) for y in range(heads) if (x, y) not in self.runs]
        if missing:
            raise InputError(
                f"{self.name} has {len(self.runs)} heads, expected {layers} layers x {heads}: {head_name(missing[0])} "
                "is missing; the file is incomplete."
            )
        counts = {len(scores) for scores in self.runs.values()}
        if len(counts) > 1 or not all(counts):
            raise InputError(
                f"{self.name}: every head needs a score for each of the same runs, got {min(counts)} to {max(counts)} "
                "scores; the file is damaged."
            )
        for head, scores in self.runs.items():
            if not all(_is_score(score) for score in scores):
                wrong = next(score for score in scores if not _is_score(score))
                raise InputError(f"{self.name}: scores are numbers from 0, {head_name(head)} has {wrong!r}.")

    @property
    def n_runs(self) -> int:
        """Number of kept runs."""
        return len(next(iter(self.runs.values())))

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and heads."""
        return max(layer for layer, _ in self.runs) + 1, max(head for _, head in self.runs) + 1

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read such a file.

        Raises:
            InputError: No such file, no JSON, or not this format; the sentence says what is wrong where.
        """
        path = Path(path)
        content = named_json(path, "The retrieval scores")
        if not isinstance(content, dict):
            raise InputError(f'{path} must hold {{"layer-head": [scores]}}, got a {type(content).__name__}.')
        runs: dict[Head, list[float]] = {}
        for key, scores in content.items():
            match = re.fullmatch(r"(\d+)-(\d+)", key, re.ASCII)
            if not match or not isinstance(scores, list):
                raise InputError(f'{path} must hold {{"layer-head": [scores]}}, got {key!r}: {str(scores)[:40]}.')
            head = int(match[1]), int(match[2])
            if head in runs:
                raise InputError(f"{path} holds {head_name(head)} twice, the second time as {key!r}.")
            runs[head] = scores
        return cls(runs, path.name)

    def write(self, path: str | Path) -> Path:
        """Write the same format; a file that was read comes out byte for byte.

        Raises:
            ResultError: The place cannot be written.
        """
        content = {f"{layer}-{head}": [*scores] for (layer, head), scores in self.runs.items()}
        return write_atomically(path, json.dumps(content).encode())

    def scores(self) -> HeadScores:
        """Mean score of each head.

        Columns beside ``retrieval``: ``activation_frequency`` (share of the runs with a score above 0), ``n_runs``, and
        ``retrieval_band``.

        Example:
            >>> runs = RetrievalRuns({(0, 0): [0, 0.5], (0, 1): [0, 0]})
            >>> runs.scores().to_dataframe()[
            ...     ["retrieval", "activation_frequency", "retrieval_band"]
            ... ].to_numpy().tolist()
            [[0.25, 0.5, '0.1-0.5'], [0.0, 0.0, '0']]
        """
        ordered = sorted(self.runs)
        values = np.array([self.runs[head] for head in ordered], dtype=np.float64)
        mean = values.mean(1)
        frame = pd.DataFrame(ordered, columns=["layer", "head"])
        frame["retrieval"] = mean
        frame["activation_frequency"] = (values > 0).mean(1)
        frame["n_runs"] = self.n_runs
        frame["retrieval_band"] = [band(score) for score in mean.tolist()]
        meta = {"source": self.name, "n_runs": self.n_runs, "form": "event", "max_score": float(values.max())}
        return HeadScores(frame, {"retrieval": RETRIEVAL_FILE}, meta)


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
