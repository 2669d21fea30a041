"""Choosing an intervention on one half of labelled prompts and reporting it on the other (ACT, ZeroTuning)."""

from sinklens.studies.calibration.answer_rates import AnswerRates, RateChange
from sinklens.studies.calibration.choose_gamma import choose_gamma
from sinklens.studies.calibration.classification import (
    ClassificationTask,
    TaskScores,
    classification_task,
    score_task,
)
from sinklens.studies.calibration.filter_heads import filter_heads
from sinklens.studies.calibration.labelled_csv import LabelledTexts
from sinklens.studies.calibration.profile_heads import profile_heads
from sinklens.studies.calibration.result import Calibration

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
