"""Accuracy taken apart: how often the answer is one of the labels at all, and how often it is then right."""

import math
from dataclasses import dataclass

from sinklens.errors import InputError


@dataclass(frozen=True)
class AnswerRates:
    """Counts of a classification run; the three rates belong together and none is to be reported alone.

    Attributes:
        n: Prompts.
        valid: How often the most likely next token is one of the labels.
        correct: How often it is the right one; a wrong or invalid answer is not.

    Raises:
        InputError: Counts that do not satisfy ``0 <= correct <= valid <= n``.

    >>> rates = AnswerRates(n=500, valid=347, correct=318)
    >>> rates.accuracy, rates.valid_rate, round(rates.accuracy_given_valid, 3)
    (0.636, 0.694, 0.916)
    """

    n: int
    valid: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.valid <= self.n:
            raise InputError(
                f"Expected counts with correct <= valid <= n, got {self.correct} correct, {self.valid} valid, {self.n}."
            )

    @property
    def accuracy(self) -> float:
        """``correct / n``; NaN without prompts."""
        return self.correct / self.n if self.n else math.nan

    @property
    def valid_rate(self) -> float:
        """``valid / n``; NaN without prompts."""
        return self.valid / self.n if self.n else math.nan

    @property
    def accuracy_given_valid(self) -> float:
        """``correct / valid``: what accuracy would be if only labels could be answered; NaN without a valid answer."""
        return self.correct / self.valid if self.valid else math.nan


@dataclass(frozen=True)
class RateChange:
    """What became better from one run to another on the same prompts: the choice of answers, or only their form.

    As ``accuracy = valid_rate * accuracy_given_valid``, a gain splits exactly into
    ``(change of valid_rate) * (mean accuracy_given_valid) + (mean valid_rate) * (change of accuracy_given_valid)``.

    On ZeroTuning's own run on SST-2 all of the gain is of form:

    >>> change = RateChange(AnswerRates(500, 347, 318), AnswerRates(500, 498, 443))
    >>> round(change.accuracy, 3), round(change.from_validity, 3), round(change.from_choice, 3), change.format_effect
    (0.25, 0.273, -0.023, True)

    and on BoolQ it is not:

    >>> RateChange(AnswerRates(500, 495, 362), AnswerRates(500, 499, 403)).format_effect
    False
    """

    before: AnswerRates
    after: AnswerRates

    @property
    def accuracy(self) -> float:
        """Change of accuracy."""
        return self.after.accuracy - self.before.accuracy

    @property
    def valid_rate(self) -> float:
        """Change of the rate of valid answers."""
        return self.after.valid_rate - self.before.valid_rate

    @property
    def accuracy_given_valid(self) -> float:
        """Change of accuracy among valid answers; NaN when one of the runs has none."""
        return self.after.accuracy_given_valid - self.before.accuracy_given_valid

    @property
    def from_validity(self) -> float:
        """Part of the change of accuracy that comes from more (or fewer) valid answers."""
        return self.valid_rate * (self.after.accuracy_given_valid + self.before.accuracy_given_valid) / 2

    @property
    def from_choice(self) -> float:
        """Part that comes from choosing better (or worse) among the labels."""
        return self.accuracy_given_valid * (self.after.valid_rate + self.before.valid_rate) / 2

    @property
    def format_effect(self) -> bool:
        """Whether accuracy rises while accuracy given validity does not (or cannot be compared)."""
        return self.accuracy > 0 and not self.accuracy_given_valid > 0
