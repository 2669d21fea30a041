"""Sentences on domains."""

import math
import random
from collections.abc import Sequence

import pandas as pd

from sinklens.studies.census.verdict import describe_domains
from tests.studies.census.verdict.evidence import (
    NUMBER,
    Evidence,
    Row,
    Settings,
    Tables,
    Topic,
    counts,
    name,
    says,
    want,
)

D = "importance_first_difference"


def generate(rng: random.Random) -> tuple[Tables, Settings]:
    names = rng.sample(["prose", "code", "a b", "x, y"], rng.choice([1, 2, 2, 3]))
    tied, few, flat = rng.random() < 0.3, rng.random() < 0.15, rng.random() < 0.2
    rows = []
    for layer in range(rng.choice([1, 3])):
        for head in range(rng.choice([1, 4])):
            drawn = {n: 0.5 if flat else rng.choice([0.1, 0.9]) if tied else rng.random() for n in names}
            for each in names:
                others = [drawn[n] for n in names if n != each]
                difference = drawn[each] - sum(others) / len(others) if others else math.nan
                width = math.nan if few or not others else rng.choice([0.001, 0.3])
                rows.append(
                    {
                        "layer": layer,
                        "head": head,
                        "domain": each,
                        "importance_first": drawn[each],
                        "is_sink_first": drawn[each] > 0.3,
                        D: difference,
                        f"{D}_low": difference - width,
                        f"{D}_high": difference + width,
                    }
                )
    return {"domains": pd.DataFrame(rows)}, {"eps": 0.3}


def differing(evidence: Evidence) -> list[Row]:
    return [row for row in evidence.tables["domains"] if row[f"{D}_low"] > 0 or row[f"{D}_high"] < 0]


def check(said: dict[str, str], evidence: Evidence) -> None:
    rows = evidence.tables["domains"]
    names = list(dict.fromkeys(row["domain"] for row in rows))
    want(len(names) > 1, "one domain")
    sinks = [f"{sum(bool(r['is_sink_first']) for r in rows if r['domain'] == each)} on {each}" for each in names]
    want(said["counts"] == ", ".join(sinks), f"counts are {sinks}")
    counts(said["all"], len({name(row) for row in rows}), "heads")
    counts(said["n"], len({name(row) for row in differing(evidence)}), "differing heads")
    want((said["level"], said["chance"]) == ("95", "5"), "the interval's level")
    want((said.get("head") is None) == (not differing(evidence)), "a head is named where some differ")
    if said.get("head") is None:
        return
    largest = max(abs(row[D]) for row in differing(evidence))
    found = [row for row in differing(evidence) if name(row) == said["head"] and row["domain"] == said["domain"]]
    want(len(found) == 1, f"{said['head']} does not differ on {said['domain']}")
    want(abs(found[0][D]) >= largest - 1e-8, "another head differs more")
    want(said["rest"] == ("the rest" if len(names) > 2 else next(n for n in names if n != said["domain"])), "the rest")
    says(said["own"], found[0]["importance_first"], "importance")
    says(said["other"], found[0]["importance_first"] - found[0][D], "importance of the rest")
    for group, column in (("difference", D), ("low", f"{D}_low"), ("high", f"{D}_high")):
        says(said[group], found[0][column], group)


def incomparable(said: dict[str, str], evidence: Evidence) -> None:
    want(all(math.isnan(row[f"{D}_low"]) for row in evidence.tables["domains"]), "there are intervals")
    want(said["n"] == "5", "sequences that an interval needs")


def complete(sentences: Sequence[str], evidence: Evidence) -> None:
    several = len({row["domain"] for row in evidence.tables.get("domains", [])}) > 1
    want(several == any("omain" in each.split()[1] for each in sentences), "domains")


_HEAD = (
    r"By domain: position 0 is a sink for (?P<counts>.+) of (?P<all>\d+) heads, and (?P<n>\d+) give it more or less "
    r"attention on one than on the rest \((?P<level>\d+) % intervals; (?P<chance>\d+) % of the comparisons would by "
    r"chance\)"
)
TOPIC = Topic(
    describe=lambda tables, settings: describe_domains(tables["domains"]),
    generate=generate,
    checks={
        rf"{_HEAD}\.": check,
        rf"{_HEAD}; most (?P<head>L\d+H\d+): importance (?P<own>{NUMBER}) on (?P<domain>.+), (?P<other>{NUMBER}) on "
        rf"(?P<rest>.+) \(difference (?P<difference>{NUMBER}) \[(?P<low>{NUMBER}), (?P<high>{NUMBER})\]\)\.": check,
        r"The domains cannot be compared: an interval needs at least (?P<n>[\d,]+) sequences of each\.": incomparable,
    },
    complete=complete,
)
