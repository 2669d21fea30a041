"""Capture, detectors and interventions put together into results."""

from sinklens.experiments.active_dormant import ActiveDormant, active_dormant
from sinklens.experiments.bootstrap import Interval, paired_interval
from sinklens.experiments.calibration import (
    AnswerRates,
    Calibration,
    ClassificationTask,
    RateChange,
    TaskScores,
    choose_gamma,
    classification_task,
    filter_heads,
    profile_heads,
    score_task,
)
from sinklens.experiments.census import AttentionMap, Census, Table
from sinklens.experiments.controls import (
    ControlComparison,
    RandomHeadSets,
    all_heads,
    compare_with_controls,
    random_head_sets,
)
from sinklens.experiments.corpus import builtin_corpus
from sinklens.experiments.effects import Answers, Reference, token_losses
from sinklens.experiments.measure import Effects, measure_effects
from sinklens.experiments.scan import DETECTORS, scan
from sinklens.experiments.summary import summarise
from sinklens.experiments.sweeps import Sweep, SweepPlan, sweep

__all__ = [
    "DETECTORS",
    "ActiveDormant",
    "AnswerRates",
    "Answers",
    "AttentionMap",
    "Calibration",
    "Census",
    "ClassificationTask",
    "ControlComparison",
    "Effects",
    "Interval",
    "RandomHeadSets",
    "RateChange",
    "Reference",
    "Sweep",
    "SweepPlan",
    "Table",
    "TaskScores",
    "active_dormant",
    "all_heads",
    "builtin_corpus",
    "choose_gamma",
    "classification_task",
    "compare_with_controls",
    "filter_heads",
    "measure_effects",
    "paired_interval",
    "profile_heads",
    "random_head_sets",
    "scan",
    "score_task",
    "summarise",
    "sweep",
    "token_losses",
]
