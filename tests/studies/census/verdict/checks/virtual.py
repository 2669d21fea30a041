"""Sentences on learned sinks and output gates."""

from collections.abc import Sequence

from sinklens.detectors.attention_summary_verdict import describe_virtual
from tests.studies.census.verdict.checks.heads import tables_of_heads
from tests.studies.census.verdict.evidence import HEADS, NUMBER, Evidence, Row, Topic, known, same_heads, says, want


def rows_with(column: str, evidence: Evidence) -> list[Row]:
    return [row for row in evidence.tables["heads"] if known(row[column])]


def learned(said: dict[str, str], evidence: Evidence) -> None:
    rows = rows_with("missing_mass", evidence)
    top = max(row["missing_mass"] for row in rows)
    want(top > 0.01, "nothing is missing")
    says(said["mean"], sum(row["missing_mass"] for row in rows) / len(rows), "mean")
    says(said["top"], top, "largest")
    same_heads(said["heads"], [row for row in rows if row["missing_mass"] == top], "largest")


def gates(said: dict[str, str], evidence: Evidence) -> None:
    rows = rows_with("gate", evidence)
    low = min(row["gate"] for row in rows)
    says(said["mean"], sum(row["gate"] for row in rows) / len(rows), "mean")
    says(said["low"], low, "least")
    same_heads(said["heads"], [row for row in rows if row["gate"] == low], "least")


def complete(sentences: Sequence[str], evidence: Evidence) -> None:
    missing = any(row["missing_mass"] > 0.01 for row in rows_with("missing_mass", evidence))
    want(missing == any(each.startswith("Virtual sink") for each in sentences), "a learned sink")
    gated = bool(rows_with("gate", evidence))
    want(gated == any(each.startswith("Output gates") for each in sentences), "gates")


TOPIC = Topic(
    describe=lambda tables, settings: describe_virtual(tables["heads"]),
    generate=tables_of_heads,
    checks={
        rf"Virtual sink: learned sink logits take (?P<mean>{NUMBER}) of the attention on average, at most "
        rf"(?P<top>{NUMBER}) \((?P<heads>{HEADS})\); that mass reaches no key and is not in the sink rates\.": learned,
        rf"Output gates pass (?P<mean>{NUMBER}) of the heads' output on average, least in (?P<heads>{HEADS}) "
        rf"\((?P<low>{NUMBER})\)\.": gates,
    },
    complete=complete,
)
