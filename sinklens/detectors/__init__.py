"""One phenomenon per file: pure functions on plain tensors, and a registered class that finds it during a pass."""

from sinklens.detectors.active_dormant import ActiveDormantDetector
from sinklens.detectors.attention_entropy import EntropyDetector
from sinklens.detectors.attention_summary import AttentionSummaryDetector
from sinklens.detectors.base import Detector, Metric
from sinklens.detectors.compression import CompressionDetector
from sinklens.detectors.decorrelation import DecorrelationDetector
from sinklens.detectors.delimiter import DelimiterDetector
from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.local_global import LocalGlobalDetector
from sinklens.detectors.massive_activations import MassiveActivationDetector
from sinklens.detectors.measure import Measurement, measure
from sinklens.detectors.registry import built_in_detectors, metrics_of, register
from sinklens.detectors.residual_peaks import ResidualPeakDetector
from sinklens.detectors.secondary_sinks import SecondarySinkDetector
from sinklens.detectors.sinks import SinkDetector
from sinklens.detectors.value_drains import ValueDrainDetector
from sinklens.detectors.value_weighted import ValueWeightedDetector
from sinklens.detectors.visible_sinks import VisibleSinkDetector

METRICS: tuple[Metric, ...] = metrics_of(list(built_in_detectors().values()))
"""Definitions of what the registered detectors report; scores of heads carry their own, see :class:`HeadScores`."""

__all__ = [
    "METRICS",
    "ActiveDormantDetector",
    "AttentionSummaryDetector",
    "CompressionDetector",
    "DecorrelationDetector",
    "DelimiterDetector",
    "Detector",
    "EntropyDetector",
    "HeadScores",
    "LocalGlobalDetector",
    "MassiveActivationDetector",
    "Measurement",
    "Metric",
    "ResidualPeakDetector",
    "SecondarySinkDetector",
    "SinkDetector",
    "ValueDrainDetector",
    "ValueWeightedDetector",
    "VisibleSinkDetector",
    "measure",
    "register",
]
