"""Where the class of each kind of result is defined, so that a saved one is opened without the others."""

from collections.abc import Mapping
from typing import Final

HOMES: Final[Mapping[str, str]] = {
    "sinklens-active-dormant": "sinklens.studies.active_dormant.result",
    "sinklens-calibration": "sinklens.studies.calibration.result",
    "sinklens-causal-check": "sinklens.studies.causal_check.result",
    "sinklens-census": "sinklens.studies.census.result",
    "sinklens-conflict-heads": "sinklens.studies.conflict_heads.result",
    "sinklens-document-ranking": "sinklens.studies.document_ranking.result",
    "sinklens-dynamics": "sinklens.studies.dynamics.result",
    "sinklens-effects": "sinklens.studies.effects.result",
    "sinklens-extreme-tokens": "sinklens.studies.extreme_tokens.result",
    "sinklens-factual-recall": "sinklens.studies.factual_recall.result",
    "sinklens-generation": "sinklens.studies.generation.result",
    "sinklens-injection": "sinklens.studies.injection.result",
    "sinklens-massive-sources": "sinklens.studies.massive_sources.result",
    "sinklens-near-far": "sinklens.studies.near_far.result",
    "sinklens-needles": "sinklens.studies.needles.result",
    "sinklens-path-patching": "sinklens.studies.path_patching.result",
    "sinklens-policies": "sinklens.studies.policies.result",
    "sinklens-pooling": "sinklens.studies.pooling.result",
    "sinklens-roles": "sinklens.studies.head_roles.result",
    "sinklens-sink-causes": "sinklens.studies.sink_causes.result",
    "sinklens-span-heads": "sinklens.studies.span_heads.result",
    "sinklens-split-check": "sinklens.studies.streaming_split.check",
    "sinklens-streaming-gates": "sinklens.studies.streaming_split.result",
    "sinklens-super-experts": "sinklens.studies.super_experts.result",
    "sinklens-sweep": "sinklens.studies.ablation.result",
    "sinklens-task-scores": "sinklens.studies.evaluation.result",
}
"""Modules by ``format``."""
