"""One phenomenon per file: pure functions on plain tensors and an update / merge / compute class."""

from sinklens.detectors import (
    active_dormant,
    attention_summary,
    compression,
    decorrelation,
    massive_activations,
    residual_peaks,
    secondary_sinks,
    sinks,
    value_drains,
)
from sinklens.detectors.active_dormant import ActiveDormantDetector, HeadActivity
from sinklens.detectors.attention_summary import AttentionSummary, AttentionSummaryDetector
from sinklens.detectors.base import Detector, Metric, Result
from sinklens.detectors.compression import Compression, CompressionDetector
from sinklens.detectors.decorrelation import Decorrelation, DecorrelationDetector
from sinklens.detectors.massive_activations import MassiveActivationDetector, MassiveActivations
from sinklens.detectors.residual_peaks import ResidualPeakDetector, ResidualPeaks
from sinklens.detectors.secondary_sinks import SecondarySinkDetector, SecondarySinks
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
    secondary_sinks.METRIC,
    compression.ENTROPY,
    compression.ANISOTROPY,
    decorrelation.METRIC,
    active_dormant.MASS,
    active_dormant.OUTPUT_NORM,
    active_dormant.ABLATION,
)
"""Definitions of everything the detectors report."""

__all__ = [
    "METRICS",
    "ActiveDormantDetector",
    "AttentionSummary",
    "AttentionSummaryDetector",
    "Compression",
    "CompressionDetector",
    "Decorrelation",
    "DecorrelationDetector",
    "Detector",
    "HeadActivity",
    "MassiveActivationDetector",
    "MassiveActivations",
    "Metric",
    "ResidualPeakDetector",
    "ResidualPeaks",
    "Result",
    "SecondarySinkDetector",
    "SecondarySinks",
    "SinkDetector",
    "Sinks",
    "ValueDrainDetector",
    "ValueDrains",
    "active_dormant",
    "attention_summary",
    "compression",
    "decorrelation",
    "massive_activations",
    "residual_peaks",
    "secondary_sinks",
    "sinks",
    "value_drains",
]
