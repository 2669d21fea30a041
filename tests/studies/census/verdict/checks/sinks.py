"""Sentences on attention sinks."""

import re
from collections.abc import Sequence

from sinklens.detectors.sinks_verdict import describe_sinks
from tests.studies.census.verdict.checks.heads import tables_of_heads
from tests.studies.census.verdict.evidence import (
    HEADS,
    LAYERS,
    NUMBER,
    Evidence,
    Row,
    Topic,
    counts,
    heads_of,
    known,
    layers_of,
    name,
    same_heads,
    says,
    want,
)


def measured(evidence: Evidence) -> list[Row]:
    return [row for row in evidence.tables["heads"] if known(row["importance"])]


def is_sink(row: Row, evidence: Evidence) -> bool:
    """By the rule, not by the column."""
    rate, ratio = evidence.settings["sink_head_rate"], evidence.settings["sink_head_ratio"]
    return bool(known(row["importance"]) and row["sink_rate"] >= rate and row["ratio"] >= ratio)


def sink_rows(evidence: Evidence) -> list[Row]:
    return [row for row in evidence.tables["heads"] if is_sink(row, evidence)]


def key(row: Row) -> tuple[float, float, float]:
    return row["importance"], row["sink_rate"], row["ratio"]


def position(said: dict[str, str], evidence: Evidence) -> None:
    at = int(said["position"])
    group = [row for row in sink_rows(evidence) if row["sink_position"] == at]
    want(bool(group), f"no head sinks on {at}")
    counts(said["count"], len(group), "sink heads")
    counts(said["all"], len(measured(evidence)), "heads")
    want(said["verb"] == ("gives" if len(group) == 1 else "give"), "grammar")
    want(float(said["eps"]) == evidence.settings["eps"], "eps")
    token(said["token"], at, evidence)
    same_heads(said["heads"], group, "sink heads")
    by_name = {name(row): row for row in group}
    named, _ = heads_of(said["heads"])
    order = [key(by_name[each]) for each in named]
    want(order == sorted(order, reverse=True), "heads are not in the order of importance")
    for other in group:
        if name(other) not in named:
            want(key(other) <= order[-1], f"{name(other)} is stronger than one that is named")
    best = max(key(row) for row in group)
    same_heads(said["best"], [row for row in group if key(row) == best], "strongest")
    says(said["importance"], best[0], "importance")
    says(said["rate"], best[1], "sink rate")
    says(said["ratio"], best[2], "ratio")


def token(said: str, at: int, evidence: Evidence) -> None:
    there = [row for row in evidence.tables["tokens"] if row["position"] == at]
    if len({row["token"] for row in there}) != 1:
        want(said == "", f"position {at} has several tokens")
        return
    bos = ", the BOS" if all(row["is_bos"] for row in there) else ""
    want(said == f" ({there[0]['token']!r}{bos})", f"the token at {at}")


def by_layer(said: dict[str, str], evidence: Evidence) -> None:
    having = {int(row["layer"]) for row in sink_rows(evidence)}
    attended = {int(row["layer"]) for row in measured(evidence)}
    want(layers_of(said["having"]) == having, f"layers with sink heads are {sorted(having)}")
    want(layers_of(said.get("without") or "") == attended - having, f"layers without are {sorted(attended - having)}")


def nothing(said: dict[str, str], evidence: Evidence) -> None:
    heads = measured(evidence)
    want(not sink_rows(evidence), "there are sink heads")
    want(float(said["eps"]) == evidence.settings["eps"], "eps")
    first = max(row["importance_first"] for row in heads)
    nearest = [row for row in heads if row["importance_first"] == first]
    says(said["first"], first, "importance of position 0")
    same_heads(said["nearest"], nearest, "nearest")
    says(said["ratio"], max(row["importance_first"] / row["null_first"] for row in nearest), "ratio")
    rate = max(row["sink_rate"] for row in heads)
    says(said["rate"], rate, "highest sink rate")
    top = [row for row in heads if row["sink_rate"] == rate]
    want((rate > 0) == (said["top"] is not None), "heads are named at a rate above 0, and only there")
    if said["top"] is not None:
        same_heads(said["top"], top, "highest rate")
        places = {row["sink_position"] for row in top}
        want(said["place"] == (str(*places) if len(places) == 1 else None), f"positions are {places}")


def none_applicable(said: dict[str, str], evidence: Evidence) -> None:
    want(not evidence.tables["heads"], "there are heads")


def all_nan(said: dict[str, str], evidence: Evidence) -> None:
    want(not measured(evidence), "some heads have numbers")
    counts(said["count"], len(evidence.tables["heads"]), "heads")


def some_nan(said: dict[str, str], evidence: Evidence) -> None:
    lost = [row for row in evidence.tables["heads"] if not known(row["importance"])]
    want(bool(measured(evidence)) and bool(lost), "all or none")
    counts(said["count"], len(lost), "NaN heads")
    counts(said["all"], len(evidence.tables["heads"]), "heads")
    same_heads(said["heads"], lost, "NaN heads")


def complete(sentences: Sequence[str], evidence: Evidence) -> None:
    """Every position with a sink has its sentence, the most heads first; NaN is never passed over."""
    said = [int(found.group(1)) for each in sentences if (found := re.match(r"Position (\d+).* is an attention", each))]
    sizes = {at: sum(row["sink_position"] == at for row in sink_rows(evidence)) for at in said}
    want(set(said) == {row["sink_position"] for row in sink_rows(evidence)}, f"positions named: {said}")
    want([sizes[at] for at in said] == sorted(sizes.values(), reverse=True), "positions are not in order")
    lost = any(not known(row["importance"]) for row in evidence.tables["heads"])
    want(lost == any("gave NaN" in each for each in sentences), "NaN is passed over, or made up")
    want(bool(said) == any(each.startswith("By layer") for each in sentences), "layers")


TOPIC = Topic(
    describe=lambda tables, settings: describe_sinks(tables["heads"], tables["tokens"], settings),
    generate=tables_of_heads,
    checks={
        rf"Position (?P<position>\d+)(?P<token>.*) is an attention sink: (?P<count>\d+) of (?P<all>\d+) heads? "
        rf"\((?P<heads>{HEADS})\) (?P<verb>gives?) it more than (?P<eps>{NUMBER}) of their attention in at least half "
        rf"of the sequences, and at least twice what uniform attention would\. Strongest: (?P<best>{HEADS}), "
        rf"importance (?P<importance>{NUMBER}), sink rate (?P<rate>{NUMBER}), (?P<ratio>{NUMBER}) times uniform "
        r"attention\.": position,
        rf"By layer: sink heads in (?P<having>{LAYERS}), none in (?P<without>{LAYERS})\.": by_layer,
        rf"By layer: sink heads in every layer with attention, (?P<having>{LAYERS})\.": by_layer,
        rf"No attention sink: no head gives any one key position more than (?P<eps>{NUMBER}) of its attention in half "
        r"of the sequences and at least twice what uniform attention would\. Position 0 receives at most "
        rf"(?P<first>{NUMBER}) \((?P<nearest>{HEADS}), (?P<ratio>{NUMBER}) times uniform attention\); the highest sink "
        rf"rate anywhere is (?P<rate>{NUMBER})(?: \((?P<top>{HEADS})(?: at position (?P<place>\d+))?\))?\.": nothing,
        r"Attention sinks are not applicable: no layer of this model has softmax attention\.": none_applicable,
        r"No verdict on attention sinks: all (?P<count>\d+) heads? gave NaN\.": all_nan,
        r"(?P<count>\d+) of (?P<all>\d+) heads? gave NaN and are in no other count here: "
        rf"(?P<heads>{HEADS})\.": some_nan,
    },
    complete=complete,
)
