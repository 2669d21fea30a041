"""Results to Plotly figures, and nothing else: pure functions that never show, save or measure.

Every figure keeps positions on numeric axes (repeated tokens keep their own column), leaves masked and
not-applicable cells missing, and says in its subtitle what is missing, clipped or pooled.
"""

from sinklens.plots.ablation_heatmap import ablation_heatmap
from sinklens.plots.active_dormant import active_dormant
from sinklens.plots.attention_map import attention_map
from sinklens.plots.before_after import before_after
from sinklens.plots.compression import compression
from sinklens.plots.cumulative_curve import cumulative_curve
from sinklens.plots.eps_sweep import eps_sweep
from sinklens.plots.export import export_html, export_png
from sinklens.plots.massive_activations import massive_activations
from sinklens.plots.massive_table import massive_table, strongest_activations
from sinklens.plots.norms_by_token import norms_by_token
from sinklens.plots.received_mass import received_mass
from sinklens.plots.residual_peaks import residual_peaks
from sinklens.plots.secondary_sinks import secondary_sinks
from sinklens.plots.sink_heatmap import sink_heatmap
from sinklens.plots.style import CONFIG, TEMPLATE, token_label, visible_text
from sinklens.plots.token_strip import token_strip

__all__ = [
    "CONFIG",
    "TEMPLATE",
    "ablation_heatmap",
    "active_dormant",
    "attention_map",
    "before_after",
    "compression",
    "cumulative_curve",
    "eps_sweep",
    "export_html",
    "export_png",
    "massive_activations",
    "massive_table",
    "norms_by_token",
    "received_mass",
    "residual_peaks",
    "secondary_sinks",
    "sink_heatmap",
    "strongest_activations",
    "token_label",
    "token_strip",
    "visible_text",
]
