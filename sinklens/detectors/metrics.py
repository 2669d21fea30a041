"""Definitions of everything that the registered detectors report."""

from sinklens.detectors.base import Metric
from sinklens.detectors.registry import built_in_detectors, metrics_of

METRICS: tuple[Metric, ...] = metrics_of(list(built_in_detectors().values()))
"""By detector and table; scores of heads carry their own, see :class:`~sinklens.detectors.HeadScores`."""
