"""A census in words: what was found and, as plainly, what was not."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sinklens.detectors.base import Detector
from sinklens.detectors.registry import asked_for, built_in_detectors
from sinklens.detectors.wording import name_of
from sinklens.studies.effects.sink_columns import describe_sinks_after


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


def describe_domains(table: pd.DataFrame) -> list[str]:
    """Where position 0 is a sink, domain by domain, and the head that differs most, either way."""
    names = list(dict.fromkeys(table["domain"]))
    if len(names) < 2:
        return []
    low, high = table["importance_first_difference_low"], table["importance_first_difference_high"]
    if low.isna().all():
        return ["The domains cannot be compared: an interval needs at least 5 sequences of each."]
    differing = table[(low > 0) | (high < 0)]
    counts = [f"{int(group['is_sink_first'].sum())} on {name}" for name, group in table.groupby("domain", sort=False)]
    n_heads, n_differing = (len(rows[["layer", "head"]].drop_duplicates()) for rows in (table, differing))
    sentence = (
        f"By domain: position 0 is a sink for {', '.join(counts)} of {n_heads} heads, and {n_differing} give it more "
        "or less attention on one than on the rest (95 % intervals; 5 % of the comparisons would by chance)"
    )
    if not n_differing:
        return [f"{sentence}."]
    top = _largest(differing)
    rest = "the rest" if len(names) > 2 else next(name for name in names if name != top.domain)
    difference = top.importance_first_difference
    return [
        f"{sentence}; most {name_of(top)}: importance {top.importance_first:.2f} on {top.domain}, "
        f"{top.importance_first - difference:.2f} on {rest} (difference {difference:.2f} "
        f"[{top.importance_first_difference_low:z.2f}, {top.importance_first_difference_high:z.2f}])."
    ]


def _largest(differing: pd.DataFrame) -> pd.Series:
    """Two domains differ by the same amount in opposite directions: the one with more attention is named."""
    difference = differing["importance_first_difference"]
    ordered = differing.assign(_size=difference.abs().round(9), _less=difference < 0).sort_values(
        ["_size", "_less", "layer", "head"], ascending=[False, True, True, True], kind="stable"
    )
    return ordered.iloc[0]
