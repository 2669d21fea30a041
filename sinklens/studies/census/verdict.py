"""A census in words: what was found and, as plainly, what was not."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sinklens.detectors.base import Detector
from sinklens.detectors.registry import asked_for, built_in_detectors
from sinklens.studies.census.domains_verdict import describe_domains
from sinklens.studies.effects.sinks_after_verdict import describe_sinks_after


def describe(
    tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any], detectors: Sequence[Detector] | None = None
) -> list[str]:
    """What every detector says of the tables, in the order of their ranks, then the intervention and the domains.

    A head counts as a sink head when its strongest key has ``sink_rate >= 0.5`` and at least twice the importance of
    uniform attention; a drain is a norm ratio below 0.5, a peak a ratio of at least 3 and a mild one of at least 1.5.

    Args:
        tables: Of a census.
        settings: Of the run.
        detectors: Those that ran; default: all built-in ones, each of which is silent without its table.
    """
    kinds = built_in_detectors().values()
    speaking = [kind() for kind in kinds if not asked_for(kind)] if detectors is None else detectors
    sentences = [sentence for detector in speaking for sentence in detector.verdict(tables, settings)]
    if "sinks_after" in tables:
        sentences += describe_sinks_after(tables["sinks_after"])
    if "domains" in tables:
        sentences += describe_domains(tables["domains"])
    return sentences
