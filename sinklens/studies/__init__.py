"""Studies: one question each, from a model and texts to a result."""

from sinklens.studies.ablation import Sweep, sweep
from sinklens.studies.active_dormant.run import ActiveDormant, active_dormant
from sinklens.studies.calibration import (
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
from sinklens.studies.causal_check.result import CausalCheck
from sinklens.studies.causal_check.run import causal_check
from sinklens.studies.census.result import AttentionMap, Census
from sinklens.studies.census.run import DETECTORS, scan
from sinklens.studies.dynamics import Dynamics, find_series, measure_dynamics
from sinklens.studies.effects.follow_sinks import FollowedSinks, follow_sinks
from sinklens.studies.effects.run import Effects, measure_effects
from sinklens.studies.head_roles import HeadRoles, Roles, read_scores, roles
from sinklens.studies.head_scores.copying_scores import copying_scores
from sinklens.studies.head_scores.head_importance import Influence, attention_influence, head_importance
from sinklens.studies.head_scores.heterogeneous_heads import heterogeneous_heads
from sinklens.studies.head_scores.pattern_scores import pattern_scores
from sinklens.studies.head_scores.text_scores import text_scores
from sinklens.studies.needles import (
    NeedleInstance,
    NeedleResult,
    NeedleSet,
    make_needles,
    needle_grid,
    retrieval_scores,
    run_needles,
    score_needles,
)
from sinklens.studies.streaming_split import (
    GateSettings,
    Split,
    SplitCheck,
    StreamingGates,
    check_split,
    streaming_split,
)
from sinklens.studies.streaming_split.kv_budget import KVBudget, kv_budget, measure_kv_bytes
from sinklens.studies.streaming_split.razor_split import razor_split

__all__ = [
    "DETECTORS",
    "ActiveDormant",
    "AnswerRates",
    "AttentionMap",
    "Calibration",
    "CausalCheck",
    "Census",
    "ClassificationTask",
    "Dynamics",
    "Effects",
    "FollowedSinks",
    "GateSettings",
    "HeadRoles",
    "Influence",
    "KVBudget",
    "NeedleInstance",
    "NeedleResult",
    "NeedleSet",
    "RateChange",
    "Roles",
    "Split",
    "SplitCheck",
    "StreamingGates",
    "Sweep",
    "TaskScores",
    "active_dormant",
    "attention_influence",
    "causal_check",
    "check_split",
    "choose_gamma",
    "classification_task",
    "copying_scores",
    "filter_heads",
    "find_series",
    "follow_sinks",
    "head_importance",
    "heterogeneous_heads",
    "kv_budget",
    "make_needles",
    "measure_dynamics",
    "measure_effects",
    "measure_kv_bytes",
    "needle_grid",
    "pattern_scores",
    "profile_heads",
    "razor_split",
    "read_scores",
    "retrieval_scores",
    "roles",
    "run_needles",
    "scan",
    "score_needles",
    "score_task",
    "streaming_split",
    "sweep",
    "text_scores",
]
