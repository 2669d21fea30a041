"""One phenomenon per file: pure functions on plain tensors, and a registered class that finds it during a pass.

``measure(model, batch, ["sinks", "previous_token"])`` runs detectors by name.
"""

from sinklens.detectors.base import Detector, Metric
from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.measure import Measurement, measure
from sinklens.detectors.registry import built_in_detectors, metrics_of, register

METRICS: tuple[Metric, ...] = metrics_of(list(built_in_detectors().values()))
"""Definitions of what the registered detectors report."""

__all__ = ["METRICS", "Detector", "HeadScores", "Measurement", "Metric", "measure", "register"]
