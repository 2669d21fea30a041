"""Sentences on what windows do to the sink figures."""

from collections.abc import Sequence

from sinklens.detectors.visible_sinks_verdict import describe_windows
from tests.studies.census.verdict.checks.heads import tables_of_heads
from tests.studies.census.verdict.checks.sinks import is_sink, measured
from tests.studies.census.verdict.evidence import LAYERS, NUMBER, Evidence, Row, Topic, counts, layers_of, says, want


def ceilings(evidence: Evidence) -> dict[int, float]:
    return {int(row["layer"]): row["ceiling_first"] for row in evidence.tables["heads"]}


def beyond(evidence: Evidence) -> dict[int, float]:
    return {layer: ceiling for layer, ceiling in ceilings(evidence).items() if ceiling <= evidence.settings["eps"]}


def hard(evidence: Evidence) -> dict[int, float]:
    """A head must give position 0 more than half of its attention, because of the window."""
    eps = evidence.settings["eps"]
    return {n: ceiling for n, ceiling in ceilings(evidence).items() if eps < ceiling < min(2 * eps, 1 - 1e-9)}


def is_visible_sink(row: Row, evidence: Evidence) -> bool:
    rate, ratio = evidence.settings["sink_head_rate"], evidence.settings["sink_head_ratio"]
    return bool(row["sink_rate_visible"] >= rate and row["ratio_visible"] >= ratio)


def unreachable(said: dict[str, str], evidence: Evidence) -> None:
    _layers(said, beyond(evidence), evidence)


def barely(said: dict[str, str], evidence: Evidence) -> None:
    found = hard(evidence)
    _layers(said, found, evidence)
    says(said["share"], evidence.settings["eps"] / max(found.values()), "share of attention")


def _layers(said: dict[str, str], found: dict[int, float], evidence: Evidence) -> None:
    want(bool(found) and layers_of(said["layers"]) == set(found), f"layers are {sorted(found)}")
    counts(said["count"], len(found), "layers")
    says(said["ceiling"], max(found.values()), "ceiling")
    want(float(said["eps"]) == evidence.settings["eps"], "eps")


def both(said: dict[str, str], evidence: Evidence) -> None:
    rows = evidence.tables["heads"]
    flags = [(is_visible_sink(row, evidence), is_sink(row, evidence)) for row in rows]
    counts(said["all"], len(rows), "heads")
    counts(said["visible"], sum(visible for visible, _ in flags), "per query that sees the key")
    counts(said["plain"], sum(plain for _, plain in flags), "by importance")
    counts(said["first"], sum(visible and not plain for visible, plain in flags), "by the first alone")
    counts(said["second"], sum(plain and not visible for visible, plain in flags), "by the second alone")


def complete(sentences: Sequence[str], evidence: Evidence) -> None:
    if not measured(evidence):
        return
    differing = any(is_visible_sink(row, evidence) != is_sink(row, evidence) for row in evidence.tables["heads"])
    due = {"Out of reach": beyond(evidence), "Hard to reach": hard(evidence), "Per query": differing}
    for start, reason in due.items():
        want(bool(reason) == any(each.startswith(start) for each in sentences), f"{start}: {reason}")


_SHOWN = (
    rf"reach: in (?P<count>\d+) layers? \((?P<layers>{LAYERS})\) windows show position 0 to at most "
    rf"(?P<ceiling>{NUMBER}) of the queries on average, so "
)
TOPIC = Topic(
    describe=lambda tables, settings: describe_windows(tables["heads"], settings),
    generate=tables_of_heads,
    checks={
        rf"Out of {_SHOWN}no head there can give it an importance above (?P<eps>{NUMBER})\.": unreachable,
        rf"Hard to {_SHOWN}a head there has to give it (?P<share>{NUMBER}) of its attention or more for an importance "
        rf"of (?P<eps>{NUMBER})\.": barely,
        r"Per query that can see the key, (?P<visible>\d+) of (?P<all>\d+) heads? are sink heads, and "
        r"(?P<plain>\d+) by importance, which divides by every later query; (?P<first>\d+) by the first count alone, "
        r"(?P<second>\d+) by the second alone\.": both,
    },
    complete=complete,
)
