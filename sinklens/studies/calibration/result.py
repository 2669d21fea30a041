"""What choosing an intervention led to: the search on one half of the prompts, the report on the other."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from jaxtyping import Float

from sinklens.errors import ResultError
from sinklens.evidence.bootstrap import Interval, paired_interval, statistic_interval
from sinklens.evidence.controls import ControlComparison, compare_with_controls
from sinklens.evidence.wilson import wilson_interval
from sinklens.interventions import Intervention
from sinklens.results.tables import load_result, save_result
from sinklens.studies.calibration.answer_rates import AnswerRates, RateChange
from sinklens.studies.calibration.classification import TaskScores
from sinklens.studies.calibration.sentences import calibrated

FORMAT = "sinklens-calibration"
FORMAT_VERSION = 1
METRICS = {
    "accuracy": "share of prompts whose most likely next token is the right label; other tokens count as wrong",
    "valid_rate": "share of prompts whose most likely next token is any label",
    "accuracy_given_valid": "share of right answers among the valid ones",
    "entropy": "mean entropy of the next-token distribution, in nats",
    "gain": "changed minus unchanged on the same prompts; for entropy unchanged minus changed",
}


@dataclass(frozen=True)
class Calibration:
    """A chosen intervention, how it was chosen, and what it is worth on prompts it was not chosen on.

    Attributes:
        meta: Method, settings, split, chosen intervention, notes, model, tokens, definitions.
        search: On the prompts chosen on: one row per candidate (``stage``: ``"unchanged"``, ``"heads"``, ``"gamma"``)
            with its heads, gamma, n, accuracy, valid_rate, accuracy_given_valid, entropy, gain and whether it was kept.
        answers: On the prompts reported on: one row per prompt and variant (``"unchanged"``, ``"tuned"``,
            ``"random-1"``, ...): prompt (its index in the task), valid, correct, entropy.
    """

    meta: dict[str, Any] = field(repr=False)
    search: pd.DataFrame = field(repr=False)
    answers: pd.DataFrame = field(repr=False)

    @property
    def intervention(self) -> Intervention | None:
        """What was chosen; ``None`` when nothing was better than the unchanged model."""
        chosen = self.meta["chosen"]
        return None if chosen is None else Intervention.from_json(json.dumps(chosen))

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the chosen heads."""
        return tuple(self.meta["variants"]["tuned"].split(",")) if self.meta["chosen"] is not None else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know when reading the numbers."""
        return tuple(self.meta["notes"])

    def report(self) -> pd.DataFrame:
        """On the prompts reported on, one row per variant.

        Columns: variant, heads (names), n, accuracy, valid_rate, accuracy_given_valid, each with its 95 % interval
        over prompts (``_low``, ``_high``; Wilson), entropy, and accuracy_gain over the unchanged model with
        accuracy_gain_low and accuracy_gain_high (95 %, paired over prompts). When nothing was chosen, "tuned" has no
        heads and is the unchanged model.
        """
        rows = []
        for variant in self.meta["variants"]:
            scores, gain = _scores(self._variant(variant)), self._gain(variant)
            row = {"variant": variant, "heads": self.meta["variants"][variant], **scores.as_row()}
            rates = scores.rates
            counts = {
                "accuracy": (rates.correct, rates.n),
                "valid_rate": (rates.valid, rates.n),
                "accuracy_given_valid": (rates.correct, rates.valid),
            }
            for name, (successes, n) in counts.items():
                row[f"{name}_low"], row[f"{name}_high"] = wilson_interval(successes, n)
            row |= {"accuracy_gain": gain.value, "accuracy_gain_low": gain.low, "accuracy_gain_high": gain.high}
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def change(self) -> RateChange:
        """The three rates before and after, and which part of a gain is of form."""
        return RateChange(self._rates("unchanged"), self._rates("tuned"))

    @property
    def format_effect(self) -> bool:
        """Whether accuracy rises on held-out prompts while accuracy given validity does not."""
        return self.change.format_effect

    @property
    def accuracy_gain(self) -> Interval:
        """Change of accuracy on held-out prompts, with its paired bootstrap interval."""
        return self._gain("tuned")

    @property
    def accuracy_given_valid_gain(self) -> Interval:
        """Change of accuracy given validity on held-out prompts; prompts are resampled with both runs' answers."""
        columns = [self._variant(v)[what].to_numpy(float) for v in ("unchanged", "tuned") for what in _RATIO]
        return statistic_interval(np.stack(columns), _ratio_change, seed=self._seed)

    @property
    def controls(self) -> ControlComparison:
        """The tuned gain in accuracy among those of as many random heads (NaN where there are none)."""
        random = [variant for variant in self.meta["variants"] if variant.startswith("random-")]
        gains = [RateChange(self._rates("unchanged"), self._rates(variant)).accuracy for variant in random]
        return compare_with_controls(self.change.accuracy if self.heads else math.nan, gains)

    @property
    def is_gain(self) -> bool:
        """Whether the 95 % intervals of accuracy and of accuracy given validity both lie above 0."""
        return self.accuracy_gain.low > 0 and self.accuracy_given_valid_gain.low > 0

    @property
    def verdict(self) -> str:
        """What came out, in a few sentences; see :func:`~sinklens.studies.calibration.sentences.calibrated`."""
        return " ".join(calibrated(self))

    def save(self, directory: str | Path) -> Path:
        """Write a directory of Parquet and JSON, complete or not at all.

        Raises:
            ResultError: The place cannot be written, or holds something else.
        """
        tables = {"search": self.search, "answers": self.answers}
        save_result(Path(directory), {"format": FORMAT, **self.meta}, tables, {})
        return Path(directory)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read a saved calibration.

        Raises:
            ResultError: No calibration there, a newer format, or damaged files.
        """
        meta, tables, _ = load_result(Path(directory), kind=FORMAT, newest=FORMAT_VERSION)
        try:
            del meta["format"]
            return cls(meta, tables["search"], tables["answers"])
        except KeyError as error:
            raise ResultError(f"{directory} is damaged: {error} is missing.") from error

    @property
    def _seed(self) -> int:
        return int(self.meta["settings"]["seed"])

    def _variant(self, name: str) -> pd.DataFrame:
        return self.answers[self.answers["variant"] == name]

    def _gain(self, name: str) -> Interval:
        before, after = (self._variant(each)["correct"].to_numpy(dtype=float) for each in ("unchanged", name))
        return paired_interval(after - before, seed=self._seed)

    def _rates(self, name: str) -> AnswerRates:
        return _scores(self._variant(name)).rates


_RATIO = ("correct", "valid")


def _ratio_change(means: Float[np.ndarray, "column sample"]) -> Float[np.ndarray, " sample"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        change: Float[np.ndarray, " sample"] = means[2] / means[3] - means[0] / means[1]
    return change


def _scores(answers: pd.DataFrame) -> TaskScores:
    return TaskScores(
        answers["valid"].to_numpy(dtype=bool),
        answers["correct"].to_numpy(dtype=bool),
        answers["entropy"].to_numpy(dtype=float),
    )
