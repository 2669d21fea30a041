"""One phenomenon per file: pure functions on plain tensors, and a registered class that finds it during a pass.

``measure(model, batch, ["sinks", "previous_token"])`` runs detectors by name.
"""

from typing import TYPE_CHECKING

from sinklens.lazy import load_lazily

if TYPE_CHECKING:
    from sinklens.detectors.base import Detector
    from sinklens.detectors.head_scores import HeadScores
    from sinklens.detectors.measure import Measurement, measure
    from sinklens.detectors.metric import Metric
    from sinklens.detectors.metrics import METRICS
    from sinklens.detectors.registry import register

__all__ = ["METRICS", "Detector", "HeadScores", "Measurement", "Metric", "measure", "register"]

load_lazily(__name__)
