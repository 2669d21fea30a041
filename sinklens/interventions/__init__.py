"""Exact changes to a model's attention: small frozen objects that hold inside ``with`` and go to JSON and back."""

from sinklens.interventions.ablate_heads import AblateHeads, mean_outputs
from sinklens.interventions.base import Composition, Intervention
from sinklens.interventions.heads import parse_head
from sinklens.interventions.mask_keys import MaskKeys
from sinklens.interventions.scale_keys import ScaleKeys
from sinklens.interventions.sliding_window import SlidingWindow

__all__ = [
    "AblateHeads",
    "Composition",
    "Intervention",
    "MaskKeys",
    "ScaleKeys",
    "SlidingWindow",
    "mean_outputs",
    "parse_head",
]
