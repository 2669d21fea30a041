"""A census in words: what was found and, as plainly, what was not."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sinklens.studies.census.verdict.domains import describe_domains
from sinklens.studies.census.verdict.drains import describe_drains
from sinklens.studies.census.verdict.massive import describe_massive
from sinklens.studies.census.verdict.peaks import describe_peaks
from sinklens.studies.census.verdict.secondary import describe_secondary
from sinklens.studies.census.verdict.sinks import describe_sinks
from sinklens.studies.census.verdict.sinks_after import describe_sinks_after
from sinklens.studies.census.verdict.token_types import describe_token_types
from sinklens.studies.census.verdict.virtual import describe_virtual
from sinklens.studies.census.verdict.windows import describe_windows

SINK_HEAD_RATE = 0.5
SINK_HEAD_RATIO = 2.0


def describe(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[str]:
    """Sentences: sinks, drains, residual peaks, massive activations, virtual and secondary sinks, domains.

    A head counts as a sink head when its strongest key has ``sink_rate >= 0.5`` and at least twice the importance of
    uniform attention; a drain is a norm ratio below 0.5, a peak a ratio of at least 3 and a mild one of at least 1.5.
    """
    sentences = []
    if "heads" in tables:
        sentences += describe_sinks(tables["heads"], tables["tokens"], settings)
        sentences += describe_windows(tables["heads"], settings)
        sentences += describe_drains(tables["heads"], tables["layers"])
    if "peaks" in tables:
        sentences += describe_peaks(tables["layers"], tables["peaks"], tables["residual_norms"])
    if "massive" in tables:
        sentences += describe_massive(tables["layers"], tables["massive_episodes"])
    if "token_types" in tables:
        sentences += describe_token_types(tables["token_types"], len(tables.get("heads", ())))
    if "heads" in tables:
        sentences += describe_virtual(tables["heads"])
    if "secondary_sinks" in tables:
        sentences += describe_secondary(tables["secondary_sinks"])
    if "sinks_after" in tables:
        sentences += describe_sinks_after(tables["sinks_after"])
    if "domains" in tables:
        sentences += describe_domains(tables["domains"])
    return sentences
