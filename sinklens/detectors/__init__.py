"""One phenomenon per file: pure functions on plain tensors, and a registered class that finds it during a pass."""

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
    value_drains,
    visible_sinks,
    write_norm,
)
from sinklens.detectors.active_dormant import ActiveDormantDetector
from sinklens.detectors.attention_entropy import EntropyDetector
from sinklens.detectors.attention_summary import AttentionSummaryDetector
from sinklens.detectors.base import Detector, Metric
from sinklens.detectors.channel_profile import ChannelProfile, ChannelProfileDetector
from sinklens.detectors.compression import CompressionDetector
from sinklens.detectors.decorrelation import DecorrelationDetector
from sinklens.detectors.delimiter import DelimiterDetector
from sinklens.detectors.duplicate_token import DuplicateTokenDetector
from sinklens.detectors.echo import EchoDetector
from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.induction import InductionDetector
from sinklens.detectors.lifecycle import Lifecycle, LifecycleDetector, trace_entries
from sinklens.detectors.local_global import LocalGlobal, LocalGlobalDetector
from sinklens.detectors.massive_activations import MassiveActivationDetector
from sinklens.detectors.measure import Measurement, measure
from sinklens.detectors.previous_token import PreviousTokenDetector
from sinklens.detectors.razor_selection import RazorSelection
from sinklens.detectors.registry import all_detectors, built_in_detectors, metrics_of, register
from sinklens.detectors.repeats import Repeats
from sinklens.detectors.residual_peaks import ResidualPeakDetector
from sinklens.detectors.retrieval import RetrievalDetector
from sinklens.detectors.secondary_sinks import SecondarySinkDetector
from sinklens.detectors.sinks import SinkDetector
from sinklens.detectors.state_norms import StateNormDetector, StateNorms, measure_state_norms
from sinklens.detectors.value_drains import ValueDrainDetector
from sinklens.detectors.value_weighted import ValueWeightedDetector
from sinklens.detectors.visible_sinks import VisibleSinkDetector

METRICS: tuple[Metric, ...] = metrics_of(list(built_in_detectors().values()))
"""Definitions of what the registered detectors report; scores of heads carry their own, see :class:`HeadScores`."""

__all__ = [
    "METRICS",
    "ActiveDormantDetector",
    "AttentionSummaryDetector",
    "ChannelProfile",
    "ChannelProfileDetector",
    "CompressionDetector",
    "DecorrelationDetector",
    "DelimiterDetector",
    "Detector",
    "DuplicateTokenDetector",
    "EchoDetector",
    "EntropyDetector",
    "HeadScores",
    "InductionDetector",
    "Lifecycle",
    "LifecycleDetector",
    "LocalGlobal",
    "LocalGlobalDetector",
    "MassiveActivationDetector",
    "Measurement",
    "Metric",
    "PreviousTokenDetector",
    "RazorSelection",
    "Repeats",
    "ResidualPeakDetector",
    "RetrievalDetector",
    "SecondarySinkDetector",
    "SinkDetector",
    "StateNormDetector",
    "StateNorms",
    "ValueDrainDetector",
    "ValueWeightedDetector",
    "VisibleSinkDetector",
    "active_dormant",
    "all_detectors",
    "attention_influence",
    "attention_summary",
    "compression",
    "decorrelation",
    "direct_logit",
    "heterogeneity",
    "massive_activations",
    "measure",
    "measure_state_norms",
    "register",
    "residual_peaks",
    "secondary_sinks",
    "sinks",
    "trace_entries",
    "value_drains",
    "visible_sinks",
    "write_norm",
]
