"""Choosing an intervention on one half of labelled prompts and reporting it on the other (ACT, ZeroTuning)."""

from sinklens.experiments.calibration.answer_rates import AnswerRates, RateChange
from sinklens.experiments.calibration.choose_gamma import choose_gamma
from sinklens.experiments.calibration.classification import (
    ClassificationTask,
    TaskScores,
    classification_task,
    score_task,
)
from sinklens.experiments.calibration.filter_heads import filter_heads
from sinklens.experiments.calibration.labelled_csv import LabelledTexts
from sinklens.experiments.calibration.profile_heads import profile_heads
from sinklens.experiments.calibration.result import Calibration

__all__ = [
    "AnswerRates",
    "Calibration",
    "ClassificationTask",
    "LabelledTexts",
    "RateChange",
    "TaskScores",
    "choose_gamma",
    "classification_task",
    "filter_heads",
    "profile_heads",
    "score_task",
]
