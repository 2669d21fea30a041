"""Results to Plotly figures, and nothing else: pure functions that never show, save or measure.

The first argument of a figure is a result, one of its tables or a DataFrame: ``plots.sink_heatmap(census)``, which is
``census.plot.sink_heatmap()``; ``dir(census.plot)`` lists what a result can draw.

Every figure keeps positions on numeric axes (repeated tokens keep their own column), leaves masked and
not-applicable cells missing, and says in its subtitle what is missing, clipped or pooled.
"""

from sinklens.plots.ablation_heatmap import ablation_heatmap
from sinklens.plots.active_dormant import active_dormant
from sinklens.plots.attention_map import attention_map
from sinklens.plots.before_after import before_after
from sinklens.plots.calibration import calibration
from sinklens.plots.compression import compression
from sinklens.plots.conflict_sides import conflict_sides
from sinklens.plots.cumulative_curve import cumulative_curve
from sinklens.plots.decorrelation import decorrelation
from sinklens.plots.document_ranks import document_ranks
from sinklens.plots.domain_differences import domain_differences
from sinklens.plots.donors import donors
from sinklens.plots.drain_scatter import drain_scatter
from sinklens.plots.dynamics import dynamics
from sinklens.plots.entropy_scatter import entropy_scatter
from sinklens.plots.eps_sweep import eps_sweep
from sinklens.plots.extreme_tokens import extreme_tokens
from sinklens.plots.factual_recall import factual_recall
from sinklens.plots.generation import generation
from sinklens.plots.head_montage import head_montage
from sinklens.plots.head_roles import head_roles
from sinklens.plots.head_scores import head_scores
from sinklens.plots.injection import injection
from sinklens.plots.lifecycle import lifecycle
from sinklens.plots.massive_activations import massive_activations
from sinklens.plots.massive_map import massive_map
from sinklens.plots.massive_sources import massive_sources
from sinklens.plots.massive_table import massive_table
from sinklens.plots.near_far import near_far
from sinklens.plots.needle_grid import needle_grid
from sinklens.plots.norms_by_token import norms_by_token
from sinklens.plots.path_effects import path_effects
from sinklens.plots.policy_costs import policy_costs
from sinklens.plots.pooling_ranks import pooling_ranks
from sinklens.plots.received_mass import received_mass
from sinklens.plots.residual_peaks import residual_peaks
from sinklens.plots.retrieval_join import retrieval_join
from sinklens.plots.role_growth import role_growth
from sinklens.plots.save_figure import save_figure
from sinklens.plots.secondary_sinks import secondary_sinks
from sinklens.plots.sink_causes import sink_causes
from sinklens.plots.sink_heatmap import sink_heatmap
from sinklens.plots.sink_share import sink_share
from sinklens.plots.span_heads import span_heads
from sinklens.plots.state_norms import state_norms
from sinklens.plots.step_heatmap import step_heatmap
from sinklens.plots.style import use_in_notebook
from sinklens.plots.super_experts import super_experts
from sinklens.plots.task_scores import task_scores
from sinklens.plots.token_classes import token_classes
from sinklens.plots.token_strip import token_strip
from sinklens.plots.token_types import token_types
from sinklens.plots.top_magnitudes import top_magnitudes

__all__ = [
    "ablation_heatmap",
    "active_dormant",
    "attention_map",
    "before_after",
    "calibration",
    "compression",
    "conflict_sides",
    "cumulative_curve",
    "decorrelation",
    "document_ranks",
    "domain_differences",
    "donors",
    "drain_scatter",
    "dynamics",
    "entropy_scatter",
    "eps_sweep",
    "extreme_tokens",
    "factual_recall",
    "generation",
    "head_montage",
    "head_roles",
    "head_scores",
    "injection",
    "lifecycle",
    "massive_activations",
    "massive_map",
    "massive_sources",
    "massive_table",
    "near_far",
    "needle_grid",
    "norms_by_token",
    "path_effects",
    "policy_costs",
    "pooling_ranks",
    "received_mass",
    "residual_peaks",
    "retrieval_join",
    "role_growth",
    "save_figure",
    "secondary_sinks",
    "sink_causes",
    "sink_heatmap",
    "sink_share",
    "span_heads",
    "state_norms",
    "step_heatmap",
    "super_experts",
    "task_scores",
    "token_classes",
    "token_strip",
    "token_types",
    "top_magnitudes",
    "use_in_notebook",
]
