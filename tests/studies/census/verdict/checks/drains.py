"""Sentences on value-state drains."""

from collections.abc import Sequence

from sinklens.detectors.value_drains_verdict import describe_drains
from tests.studies.census.verdict.checks.heads import tables_of_heads
from tests.studies.census.verdict.checks.sinks import sink_rows
from tests.studies.census.verdict.evidence import (
    HEADS,
    NUMBER,
    Evidence,
    Topic,
    counts,
    known,
    same_heads,
    says,
    want,
)

COLUMNS = {"|W_O v|": "drain_wo", "|v|": "drain"}


def check(said: dict[str, str], evidence: Evidence) -> None:
    sinks = sink_rows(evidence)
    column = COLUMNS[said["label"]]
    want(column == "drain_wo" or not any(known(row["drain_wo"]) for row in sinks), "after W_O is known, and left out")
    rows = [row for row in sinks if known(row[column])]
    counts(said["all"], len(rows), "measured sink heads")
    left = len(sinks) - len(rows)
    want((left > 0) == (said["left"] is not None), f"{left} are not measured")
    if said["left"] is not None:
        counts(said["left"], left, "not measured")
    drained = [row for row in rows if row[column] < 0.5]
    if said.get("drained") is None:
        want(not drained, f"{len(drained)} are drained")
    else:
        want(bool(drained) and float(said["bound"]) == 0.5 and said["again"] == said["all"], "drained")
        counts(said["drained"], len(drained), "drained heads")
    low, high = min(row[column] for row in rows), max(row[column] for row in rows)
    says(said["low"], low, "smallest")
    says(said["high"] or said["low"], high, "largest")
    same_heads(said["smallest"], [row for row in rows if row[column] == low], "smallest")
    normed = any(
        known(row["norm_after_attention"]) and bool(row["norm_after_attention"]) for row in evidence.tables["layers"]
    )
    want((said["norm"] is not None) == (normed and column == "drain_wo"), "the norm after W_O")


def unmeasured(said: dict[str, str], evidence: Evidence) -> None:
    sinks = sink_rows(evidence)
    counts(said["count"], len(sinks), "sink heads")
    want(not any(known(row["drain"]) or known(row["drain_wo"]) for row in sinks), "some are measured")


def complete(sentences: Sequence[str], evidence: Evidence) -> None:
    due = bool(sink_rows(evidence)) and "drain" in evidence.tables["heads"][0]
    want(due == any("alue-state drain" in each for each in sentences), "drains are measured and not mentioned")


_SIZE = (
    rf"(?P<label>\|W_O v\||\|v\|) of the sink is (?P<low>{NUMBER})(?: to (?P<high>{NUMBER}))? times the other tokens' "
    rf"mean \(smallest in (?P<smallest>{HEADS})\)\."
    r"(?P<norm> This model normalises what attention writes, all heads together, before it reaches the residual "
    r"stream: \|W_O v\| compares tokens within a head and is not what arrives there\.)?"
)
TOPIC = Topic(
    describe=lambda tables, settings: describe_drains(tables["heads"], tables["layers"]),
    generate=tables_of_heads,
    checks={
        r"Value-state drain in (?P<drained>\d+) of (?P<all>\d+) sink heads?(?:; not measured in (?P<left>\d+) more)? "
        rf"\(\|(?:W_O )?v\| of the sink below (?P<bound>{NUMBER}) times the other tokens' mean\): over all "
        rf"(?P<again>\d+), {_SIZE}": check,
        rf"No value-state drain in (?P<all>\d+) sink heads?(?:; not measured in (?P<left>\d+) more)?: {_SIZE}": check,
        r"Value-state drains could not be measured in any of the (?P<count>\d+) sink heads?\.": unmeasured,
    },
    complete=complete,
)
