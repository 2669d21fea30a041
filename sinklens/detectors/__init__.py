"""One phenomenon per file: pure functions on plain tensors and an update / merge / compute class."""

from sinklens.detectors import (
    active_dormant,
    attention_influence,
    attention_summary,
    compression,
    decorrelation,
    direct_logit,
    heterogeneity,
    massive_activations,
    residual_peaks,
    secondary_sinks,
    sinks,
    token_types,
    value_drains,
    visible_sinks,
    write_norm,
)
from sinklens.detectors.active_dormant import ActiveDormantDetector, HeadActivity
from sinklens.detectors.attention_entropy import EntropyDetector
from sinklens.detectors.attention_summary import AttentionSummary, AttentionSummaryDetector
from sinklens.detectors.base import Detector, Metric, Result
from sinklens.detectors.channel_profile import ChannelProfile, ChannelProfileDetector
from sinklens.detectors.compression import Compression, CompressionDetector
from sinklens.detectors.decorrelation import Decorrelation, DecorrelationDetector
from sinklens.detectors.delimiter import DelimiterDetector
from sinklens.detectors.duplicate_token import DuplicateTokenDetector
from sinklens.detectors.echo import EchoDetector
from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.induction import InductionDetector
from sinklens.detectors.lifecycle import Lifecycle, LifecycleDetector, trace_entries
from sinklens.detectors.local_global import LocalGlobal, LocalGlobalDetector
from sinklens.detectors.massive_activations import MassiveActivationDetector, MassiveActivations
from sinklens.detectors.previous_token import PreviousTokenDetector
from sinklens.detectors.razor_selection import RazorSelection
from sinklens.detectors.repeats import Repeats
from sinklens.detectors.residual_peaks import ResidualPeakDetector, ResidualPeaks
from sinklens.detectors.retrieval import RetrievalDetector
from sinklens.detectors.secondary_sinks import SecondarySinkDetector, SecondarySinks
from sinklens.detectors.sinks import SinkDetector, Sinks
from sinklens.detectors.state_norms import StateNormDetector, StateNorms, measure_state_norms
from sinklens.detectors.value_drains import ValueDrainDetector, ValueDrains
from sinklens.detectors.value_weighted import ValueWeightedDetector
from sinklens.detectors.visible_sinks import VisibleSinkDetector, VisibleSinks

METRICS: tuple[Metric, ...] = (
    sinks.METRIC,
    visible_sinks.METRIC,
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
    token_types.METRIC,
    active_dormant.MASS,
    active_dormant.OUTPUT_NORM,
    active_dormant.ABLATION,
)
"""Definitions of what a census reports; scores of heads carry their own, see :class:`HeadScores`."""

__all__ = [
    "METRICS",
    "ActiveDormantDetector",
    "AttentionSummary",
    "AttentionSummaryDetector",
    "ChannelProfile",
    "ChannelProfileDetector",
    "Compression",
    "CompressionDetector",
    "Decorrelation",
    "DecorrelationDetector",
    "DelimiterDetector",
    "Detector",
    "DuplicateTokenDetector",
    "EchoDetector",
    "EntropyDetector",
    "HeadActivity",
    "HeadScores",
    "InductionDetector",
    "Lifecycle",
    "LifecycleDetector",
    "LocalGlobal",
    "LocalGlobalDetector",
    "MassiveActivationDetector",
    "MassiveActivations",
    "Metric",
    "PreviousTokenDetector",
    "RazorSelection",
    "Repeats",
    "ResidualPeakDetector",
    "ResidualPeaks",
    "Result",
    "RetrievalDetector",
    "SecondarySinkDetector",
    "SecondarySinks",
    "SinkDetector",
    "Sinks",
    "StateNormDetector",
    "StateNorms",
    "ValueDrainDetector",
    "ValueDrains",
    "ValueWeightedDetector",
    "VisibleSinkDetector",
    "VisibleSinks",
    "active_dormant",
    "attention_influence",
    "attention_summary",
    "compression",
    "decorrelation",
    "direct_logit",
    "heterogeneity",
    "massive_activations",
    "measure_state_norms",
    "residual_peaks",
    "secondary_sinks",
    "sinks",
    "trace_entries",
    "value_drains",
    "visible_sinks",
    "write_norm",
]
