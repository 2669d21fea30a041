"""Scores of heads, whatever they measure, in one form: a row per head, a column per score."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sinklens.arguments import check_fields
from sinklens.detectors.metric import Metric
from sinklens.errors import InputError

KEYS = ("layer", "head")


@dataclass(frozen=True)
class HeadScores:
    """Scores of every head of a model under one measurement.

    Attributes:
        frame: One row per head: ``layer``, ``head``, and one column per score; NaN where a score does not apply. A
            score of KV heads stands in the rows of all query heads that read them.
        metrics: The definition behind each column that is a score; other columns are evidence (counts, labels).
        meta: What was measured and how, as JSON: texts or probe, settings, seeds, warnings.

    Raises:
        InputError: if a head stands twice, or a score or one of ``layer`` and ``head`` has no column.

    Example:
        >>> frame = pd.DataFrame({"layer": [0, 0], "head": [0, 1], "induction": [0.9, 0.0]})
        >>> scores = HeadScores(frame, {"induction": Metric("induction", 1, "mean A[i, i-K+1]", "Olsson et al. 2022")})
        >>> scores.to_dataframe()["induction"].tolist()
        [0.9, 0.0]
    """

    frame: pd.DataFrame = field(repr=False)
    metrics: Mapping[str, Metric]
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse a table that is not one row per head."""
        check_fields(self)
        missing = [name for name in (*KEYS, *self.metrics) if name not in self.frame]
        if missing:
            raise InputError(f"A table of head scores needs the columns {', '.join(missing)}, which are not there.")
        twice = self.frame.duplicated(list(KEYS))
        if twice.any():
            row = self.frame[twice].iloc[0]
            raise InputError(f"Head L{row['layer']}H{row['head']} stands twice in a table of head scores.")

    @property
    def scores(self) -> list[str]:
        """Names of the score columns."""
        return list(self.metrics)

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the table, yours to change."""
        return self.frame.copy()
