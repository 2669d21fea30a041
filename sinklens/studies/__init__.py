"""Studies: one question each, from a model and texts to a result."""

from typing import TYPE_CHECKING

from sinklens.lazy import load_lazily

if TYPE_CHECKING:
    from sinklens.studies.ablation.entry import sweep
    from sinklens.studies.ablation.result import Sweep
    from sinklens.studies.active_dormant.result import ActiveDormant
    from sinklens.studies.active_dormant.run import find_active_dormant
    from sinklens.studies.calibration.choose_gamma import choose_gamma
    from sinklens.studies.calibration.classification import classification_task, score_task
    from sinklens.studies.calibration.filter_heads import filter_heads
    from sinklens.studies.calibration.profile_heads import profile_heads
    from sinklens.studies.calibration.result import Calibration
    from sinklens.studies.causal_check.result import CausalCheck
    from sinklens.studies.causal_check.run import run_causal_check
    from sinklens.studies.census.result import Census
    from sinklens.studies.census.run import scan
    from sinklens.studies.conflict_heads.result import ConflictHeads
    from sinklens.studies.conflict_heads.run import find_conflict_heads
    from sinklens.studies.document_ranking.prompts import RankingTask
    from sinklens.studies.document_ranking.result import DocumentRanking
    from sinklens.studies.document_ranking.run import rank_documents
    from sinklens.studies.dynamics.entry import measure_dynamics
    from sinklens.studies.dynamics.result import Dynamics
    from sinklens.studies.effects.follow_sinks import follow_sinks
    from sinklens.studies.effects.result import Effects
    from sinklens.studies.effects.run import measure_effects
    from sinklens.studies.evaluation.run import evaluate_tasks
    from sinklens.studies.extreme_tokens.result import ExtremeTokens
    from sinklens.studies.extreme_tokens.run import find_extreme_tokens
    from sinklens.studies.factual_recall.facts import Fact
    from sinklens.studies.factual_recall.result import FactualRecall
    from sinklens.studies.factual_recall.run import trace_recall
    from sinklens.studies.generation.result import Generation
    from sinklens.studies.generation.run import follow_generation
    from sinklens.studies.head_roles.result import Roles
    from sinklens.studies.head_roles.run import find_roles
    from sinklens.studies.head_scores.copying_scores import copying_scores
    from sinklens.studies.head_scores.head_importance import attention_influence, head_importance
    from sinklens.studies.head_scores.heterogeneous_heads import heterogeneous_heads
    from sinklens.studies.head_scores.pattern_scores import pattern_scores
    from sinklens.studies.head_scores.text_scores import text_scores
    from sinklens.studies.injection.result import Injection
    from sinklens.studies.injection.run import inject_tokens
    from sinklens.studies.massive_sources.result import MassiveSources
    from sinklens.studies.massive_sources.run import trace_massive
    from sinklens.studies.near_far.result import NearFar
    from sinklens.studies.near_far.run import near_far_costs
    from sinklens.studies.needles.grid import measure_needles, score_needles
    from sinklens.studies.needles.make import make_needles
    from sinklens.studies.needles.needle_set import NeedleSet
    from sinklens.studies.needles.result import NeedleResult
    from sinklens.studies.needles.retrieval_scores import retrieval_scores
    from sinklens.studies.path_patching.result import PatchedPaths, circuit_overlap
    from sinklens.studies.path_patching.run import patch_paths
    from sinklens.studies.policies.result import PolicyComparison
    from sinklens.studies.policies.run import compare_policies
    from sinklens.studies.pooling.result import PoolingComparison
    from sinklens.studies.pooling.run import compare_pooling
    from sinklens.studies.sink_causes.result import SinkCauses
    from sinklens.studies.sink_causes.run import explain_sinks
    from sinklens.studies.span_heads.result import SpanHeads
    from sinklens.studies.span_heads.run import find_span_heads
    from sinklens.studies.streaming_split.check import SplitCheck, check_split
    from sinklens.studies.streaming_split.result import StreamingGates
    from sinklens.studies.streaming_split.run import learn_gates
    from sinklens.studies.streaming_split.settings import GateSettings
    from sinklens.studies.streaming_split.split import razor_split
    from sinklens.studies.super_experts.result import SuperExperts
    from sinklens.studies.super_experts.run import find_super_experts

__all__ = [
    "ActiveDormant",
    "Calibration",
    "CausalCheck",
    "Census",
    "ConflictHeads",
    "DocumentRanking",
    "Dynamics",
    "Effects",
    "ExtremeTokens",
    "Fact",
    "FactualRecall",
    "GateSettings",
    "Generation",
    "Injection",
    "MassiveSources",
    "NearFar",
    "NeedleResult",
    "NeedleSet",
    "PatchedPaths",
    "PolicyComparison",
    "PoolingComparison",
    "RankingTask",
    "Roles",
    "SinkCauses",
    "SpanHeads",
    "SplitCheck",
    "StreamingGates",
    "SuperExperts",
    "Sweep",
    "attention_influence",
    "check_split",
    "choose_gamma",
    "circuit_overlap",
    "classification_task",
    "compare_policies",
    "compare_pooling",
    "copying_scores",
    "evaluate_tasks",
    "explain_sinks",
    "filter_heads",
    "find_active_dormant",
    "find_conflict_heads",
    "find_extreme_tokens",
    "find_roles",
    "find_span_heads",
    "find_super_experts",
    "follow_generation",
    "follow_sinks",
    "head_importance",
    "heterogeneous_heads",
    "inject_tokens",
    "learn_gates",
    "make_needles",
    "measure_dynamics",
    "measure_effects",
    "measure_needles",
    "near_far_costs",
    "patch_paths",
    "pattern_scores",
    "profile_heads",
    "rank_documents",
    "razor_split",
    "retrieval_scores",
    "run_causal_check",
    "scan",
    "score_needles",
    "score_task",
    "sweep",
    "text_scores",
    "trace_massive",
    "trace_recall",
]

load_lazily(__name__)
