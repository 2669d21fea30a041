"""Capture, detectors and interventions put together into results."""

from sinklens.experiments.census import AttentionMap, Census, Table
from sinklens.experiments.corpus import builtin_corpus
from sinklens.experiments.scan import DETECTORS, scan

__all__ = ["DETECTORS", "AttentionMap", "Census", "Table", "builtin_corpus", "scan"]
