"""Exact changes to a model's attention: small frozen objects that hold inside ``with`` and go to JSON and back."""

from typing import TYPE_CHECKING

from sinklens.lazy import load_lazily

if TYPE_CHECKING:
    from sinklens.interventions.ablate_heads import AblateHeads
    from sinklens.interventions.base import Intervention
    from sinklens.interventions.calibrate_sinks import CalibrateSinks
    from sinklens.interventions.compensated_window import CompensatedWindow
    from sinklens.interventions.edit_values import EditValues, mean_values
    from sinklens.interventions.follow_gaze import FollowGaze
    from sinklens.interventions.head_outputs import mean_outputs
    from sinklens.interventions.mask_keys import MaskKeys
    from sinklens.interventions.massive_entries import MassiveEntries, control_entries, massive_entries
    from sinklens.interventions.paint_scores import PaintScores
    from sinklens.interventions.redistribute_attention import RedistributeAttention
    from sinklens.interventions.scale_heads import ScaleHeads
    from sinklens.interventions.scale_keys import ScaleKeys
    from sinklens.interventions.set_activations import SetActivations, mean_activations
    from sinklens.interventions.sink_dims import find_sink_dims
    from sinklens.interventions.sliding_window import SlidingWindow
    from sinklens.interventions.steer_attention import SteerAttention
    from sinklens.interventions.zero_weights import ZeroWeights

__all__ = [
    "AblateHeads",
    "CalibrateSinks",
    "CompensatedWindow",
    "EditValues",
    "FollowGaze",
    "Intervention",
    "MaskKeys",
    "MassiveEntries",
    "PaintScores",
    "RedistributeAttention",
    "ScaleHeads",
    "ScaleKeys",
    "SetActivations",
    "SlidingWindow",
    "SteerAttention",
    "ZeroWeights",
    "control_entries",
    "find_sink_dims",
    "massive_entries",
    "mean_activations",
    "mean_outputs",
    "mean_values",
]

load_lazily(__name__)
