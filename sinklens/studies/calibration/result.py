"""What choosing an intervention led to: the search on one half of the prompts, the report on the other."""

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from sinklens.evidence.bootstrap import Interval, paired_interval, statistic_interval
from sinklens.evidence.controls import ControlComparison, compare_with_controls
from sinklens.evidence.wilson import wilson_interval
from sinklens.results.result import Result
from sinklens.studies.calibration.answer_rates import AnswerRates, RateChange
from sinklens.studies.calibration.task_scores import TaskScores
from sinklens.wording import several

if TYPE_CHECKING:
    from sinklens.interventions import Intervention

FORMAT = "sinklens-calibration"
WORK = "calibration"
METRICS = {
    "accuracy": "share of prompts whose most likely next token is the right label; other tokens count as wrong",
    "valid_rate": "share of prompts whose most likely next token is any label",
    "accuracy_given_valid": "share of right answers among the valid ones",
    "entropy": "mean entropy of the next-token distribution, in nats",
    "gain": "changed minus unchanged on the same prompts; for entropy unchanged minus changed",
}


@dataclass(frozen=True)
class Calibration(
    Result,
    format=FORMAT,
    title="Calibration",
    newest=1,
    needs=("answers", "search"),
    header=("chosen", "variants", "settings", "split"),
):
    """A chosen intervention, how it was chosen, and what it is worth on prompts it was not chosen on.

    Attributes:
        meta: Method, settings, split, chosen intervention, notes, model, tokens, definitions.
        tables: ``search`` and ``answers``, see the properties.
    """

    @property
    def search(self) -> pd.DataFrame:
        """On the prompts chosen on, one row per candidate.

        Columns: stage (``"unchanged"``, ``"heads"``, ``"gamma"``), heads, gamma, n, accuracy, valid_rate,
        accuracy_given_valid, entropy, gain and whether it was kept.
        """
        return self.tables["search"]

    @property
    def answers(self) -> pd.DataFrame:
        """On the prompts reported on, one row per prompt and variant.

        Columns: variant (``"unchanged"``, ``"tuned"``, ``"random-1"``, ...), prompt (its index in the task), valid,
        correct, entropy.
        """
        return self.tables["answers"]

    @property
    def intervention(self) -> "Intervention | None":
        """What was chosen; ``None`` when nothing was better than the unchanged model."""
        chosen = self.meta["chosen"]
        from sinklens.interventions import Intervention

        return None if chosen is None else Intervention.from_json(json.dumps(chosen))

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the chosen heads."""
        return tuple(self.meta["variants"]["tuned"].split(",")) if self.meta["chosen"] is not None else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know when reading the numbers."""
        return tuple(self.meta["notes"])

    def summary(self) -> pd.DataFrame:
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
    def verdict(self) -> list[str]:
        """What came out, in a few sentences; see :func:`~sinklens.studies.calibration.result.calibrated`."""
        if self.intervention is None:
            return ["Nothing was chosen.", *self.notes]
        gains = self.accuracy_gain, self.accuracy_given_valid_gain
        return [*calibrated(self.change, *gains, self.controls), *self.notes]

    def short_tables(self) -> dict[str, pd.DataFrame]:
        """The rates of every variant on held-out prompts."""
        return {"": self.summary()}

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


def calibrated(change: RateChange, gain: Interval, given_valid: Interval, controls: ControlComparison) -> list[str]:
    """Sentences about the prompts reported on: accuracy, its two parts, and random heads.

    A gain is one only if accuracy and accuracy given validity both rise beyond chance; a fall beyond chance is called
    that. Rates that do not exist (no valid answer) are not spoken of.

    Args:
        change: The rates before and after.
        gain: Of accuracy.
        given_valid: Gain of accuracy given validity.
        controls: The gain in accuracy among those of random heads.
    """
    before, after = change.before, change.after
    sentences = [
        f"On {several(after.n, 'held-out prompt')} accuracy goes from {before.accuracy:.3f} to {after.accuracy:.3f}, "
        f"by {_span(gain)}: {_found(change, gain, given_valid)}.",
        f"Valid answers go from {before.valid_rate:.3f} to {after.valid_rate:.3f}, "
        f"{_given_valid(change, given_valid)}.",
    ]
    if controls.n:
        sets = "set of as many heads changes" if controls.n == 1 else "sets of as many heads change"
        spread = f" (sd {controls.sd:.3f})" if controls.n > 1 else ""
        reach = round(controls.p * (controls.n + 1)) - 1
        sentences.append(
            f"{controls.n} random {sets} it by {controls.mean:+z.3f}{spread}; {reach} of {controls.n} "
            f"{'does' if reach == 1 else 'do'} at least as well as the chosen ones (p = {controls.p:.2g})."
        )
    else:
        sentences.append("There are no random heads to compare with.")
    return sentences


def _found(change: RateChange, gain: Interval, given_valid: Interval) -> str:
    if math.isnan(gain.low):
        found = "too few prompts to tell from chance"
    elif gain.low > 0 and given_valid.low > 0:
        found = "a gain"
    elif gain.low > 0:
        found = "more right answers, but accuracy given validity is not shown to rise"
    elif gain.high < 0:
        found = "a loss beyond chance"
    else:
        found = "no change beyond chance"
    if change.format_effect:
        among = "no larger share of them is right" if change.before.valid else "before there was none to compare with"
        found += f"; a format effect: more of the answers are labels, and {among}"
    return found


def _given_valid(change: RateChange, given_valid: Interval) -> str:
    ends = [rates.accuracy_given_valid for rates in (change.before, change.after)]
    told = ["n/a (no valid answer)" if math.isnan(end) else f"{end:.3f}" for end in ends]
    by = "" if any(map(math.isnan, ends)) else f", by {_span(given_valid)}"
    return f"accuracy given validity from {told[0]} to {told[1]}{by}"


def _span(interval: Interval) -> str:
    """``+0.050 [-0.010, +0.100]``."""
    if math.isnan(interval.low):
        return f"{interval.value:+z.3f} (no interval: {interval.note})"
    return f"{interval.value:+z.3f} [{interval.low:+z.3f}, {interval.high:+z.3f}]"
