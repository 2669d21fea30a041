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
from sinklens.experiments.causal_check import causal_check
from sinklens.experiments.causal_result import CausalCheck
from sinklens.experiments.census import AttentionMap, Census, Table
from sinklens.experiments.controls import (
    ControlComparison,
    RandomHeadSets,
    all_heads,
    compare_with_controls,
    random_head_sets,
)
from sinklens.experiments.copying_scores import copying_scores
from sinklens.experiments.corpus import builtin_corpus
from sinklens.experiments.duo import GateSettings, Split, SplitCheck, StreamingGates, check_split, streaming_split
from sinklens.experiments.dynamics import Dynamics, find_series, measure_dynamics
from sinklens.experiments.effects import Answers, Reference, token_losses
from sinklens.experiments.follow_sinks import FollowedSinks, follow_sinks
from sinklens.experiments.head_importance import Influence, attention_influence, head_importance
from sinklens.experiments.head_roles import HeadRoles, Roles, read_scores, roles
from sinklens.experiments.heterogeneous_heads import heterogeneous_heads
from sinklens.experiments.idle_heads import idle_heads
from sinklens.experiments.kv_budget import KVBudget, kv_budget, measure_kv_bytes
from sinklens.experiments.measure import Effects, measure_effects
from sinklens.experiments.needles import (
    NeedleInstance,
    NeedleResult,
    NeedleSet,
    make_needles,
    needle_grid,
    retrieval_scores,
    run_needles,
    score_needles,
)
from sinklens.experiments.pattern_scores import pattern_scores
from sinklens.experiments.razor_split import razor_split
from sinklens.experiments.scan import DETECTORS, scan
from sinklens.experiments.summary import summarise
from sinklens.experiments.sweeps import Sweep, SweepPlan, sweep
from sinklens.experiments.text_scores import text_scores

__all__ = [
    "DETECTORS",
    "ActiveDormant",
    "AnswerRates",
    "Answers",
    "AttentionMap",
    "Calibration",
    "CausalCheck",
    "Census",
    "ClassificationTask",
    "ControlComparison",
    "Dynamics",
    "Effects",
    "FollowedSinks",
    "GateSettings",
    "HeadRoles",
    "Influence",
    "Interval",
    "KVBudget",
    "NeedleInstance",
    "NeedleResult",
    "NeedleSet",
    "RandomHeadSets",
    "RateChange",
    "Reference",
    "Roles",
    "Split",
    "SplitCheck",
    "StreamingGates",
    "Sweep",
    "SweepPlan",
    "Table",
    "TaskScores",
    "active_dormant",
    "all_heads",
    "attention_influence",
    "builtin_corpus",
    "causal_check",
    "check_split",
    "choose_gamma",
    "classification_task",
    "compare_with_controls",
    "copying_scores",
    "filter_heads",
    "find_series",
    "follow_sinks",
    "head_importance",
    "heterogeneous_heads",
    "idle_heads",
    "kv_budget",
    "make_needles",
    "measure_dynamics",
    "measure_effects",
    "measure_kv_bytes",
    "needle_grid",
    "paired_interval",
    "pattern_scores",
    "profile_heads",
    "random_head_sets",
    "razor_split",
    "read_scores",
    "retrieval_scores",
    "roles",
    "run_needles",
    "scan",
    "score_needles",
    "score_task",
    "streaming_split",
    "summarise",
    "sweep",
    "text_scores",
    "token_losses",
]
