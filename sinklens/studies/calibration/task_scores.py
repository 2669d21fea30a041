"""How a model answered the prompts of a task."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from sinklens.studies.calibration.answer_rates import AnswerRates


@dataclass(frozen=True)
class TaskScores:
    """How a model answered each prompt.

    Attributes:
        valid: The most likely next token is one of the prompt's labels, ``[prompt]``.
        correct: It is the right one, ``[prompt]``.
        entropy: Entropy of the whole next-token distribution in nats, ``[prompt]``; needs no labels.
    """

    valid: Bool[np.ndarray, " prompt"]
    correct: Bool[np.ndarray, " prompt"]
    entropy: Float[np.ndarray, " prompt"]

    @property
    def rates(self) -> AnswerRates:
        """Accuracy, rate of valid answers, and accuracy given validity."""
        return AnswerRates(len(self.valid), int(self.valid.sum()), int(self.correct.sum()))

    @property
    def mean_entropy(self) -> float:
        """Mean over prompts, in nats."""
        return float(self.entropy.mean())

    def as_row(self) -> dict[str, float]:
        """Columns of a table: n, accuracy, valid_rate, accuracy_given_valid, entropy."""
        rates = self.rates
        return {
            "n": rates.n,
            "accuracy": rates.accuracy,
            "valid_rate": rates.valid_rate,
            "accuracy_given_valid": rates.accuracy_given_valid,
            "entropy": self.mean_entropy,
        }
