"""One phenomenon per file: pure functions on plain tensors and an update / merge / compute class."""

from sinklens.detectors import attention_summary, massive_activations, residual_peaks, sinks, value_drains
from sinklens.detectors.attention_summary import AttentionSummary, AttentionSummaryDetector
from sinklens.detectors.base import Detector, Metric, Result
from sinklens.detectors.massive_activations import MassiveActivationDetector, MassiveActivations
from sinklens.detectors.residual_peaks import ResidualPeakDetector, ResidualPeaks
from sinklens.detectors.sinks import SinkDetector, Sinks
from sinklens.detectors.value_drains import ValueDrainDetector, ValueDrains

METRICS: tuple[Metric, ...] = (
    sinks.METRIC,
    value_drains.METRIC,
    massive_activations.METRIC,
    residual_peaks.METRIC,
    attention_summary.ENTROPY,
    attention_summary.DISTANCE,
    attention_summary.MISSING,
    attention_summary.GATE,
    attention_summary.DELTA_LOGIT,
)
"""Definitions of everything the detectors report."""

__all__ = [
    "METRICS",
    "AttentionSummary",
    "AttentionSummaryDetector",
    "Detector",
    "MassiveActivationDetector",
    "MassiveActivations",
    "Metric",
    "ResidualPeakDetector",
    "ResidualPeaks",
    "Result",
    "SinkDetector",
    "Sinks",
    "ValueDrainDetector",
    "ValueDrains",
    "attention_summary",
    "massive_activations",
    "residual_peaks",
    "sinks",
    "value_drains",
]
