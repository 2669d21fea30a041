"""The sentence on secondary sinks."""

import ast
import random
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from sinklens.detectors.secondary_sinks_verdict import describe_secondary
from tests.studies.census.verdict.evidence import NUMBER, Evidence, Row, Settings, Tables, Topic, counts, says, want


def rows_of(evidence: Evidence) -> list[Row]:
    return [row for row in evidence.tables.get("secondary_sinks", []) if row["label"] == "secondary"]


def check(said: dict[str, str], evidence: Evidence) -> None:
    rows = rows_of(evidence)
    counts(said["tokens"], len(rows), "tokens")
    counts(said["sequences"], len({row["sequence"] for row in rows}), "sequences")
    names = Counter(row["token"] for row in rows)
    most = max(names.values())
    if said.get("often"):
        counts(said["often"], most, "the most common token")
        want(names[ast.literal_eval(said["name"])] == most, "another token is more common")
    else:
        want(most <= 2, "a common token is not named")
    place = (int(said["sequence"]), int(said["position"]))
    mine = [row for row in rows if (row["sequence"], row["position"]) == place]
    want(
        len(mine) == 1 and mine[0]["importance_max"] == max(row["importance_max"] for row in rows), "not the strongest"
    )
    want(mine[0]["token"] == ast.literal_eval(said["token"]), "token")
    counts(said["first"], int(mine[0]["first_layer"]), "first layer")
    counts(said["last"], int(mine[0]["last_layer"]), "last layer")
    says(said["importance"], mine[0]["importance_max"], "importance")


def complete(sentences: Sequence[str], evidence: Evidence) -> None:
    want(bool(rows_of(evidence)) == any(each.startswith("Secondary sinks") for each in sentences), "secondary sinks")


def generate(rng: random.Random) -> tuple[Tables, Settings]:
    """From no token to many, with ties of importance and of names."""
    rows = []
    for sequence in range(rng.choice([0, 1, 4])):
        for position in rng.sample(range(1, 40), rng.choice([1, 2, 5])):
            rows.append(
                {
                    "sequence": sequence,
                    "position": position,
                    "token": rng.choice([" the", ".", "it's \"", "\n"]),
                    "first_layer": rng.randrange(4),
                    "last_layer": rng.randrange(4, 9),
                    "importance_max": rng.choice([0.5, 0.5, rng.uniform(0.3, 1)]),
                    "label": rng.choice(["secondary", "secondary", "noise", "aligned, not a sink"]),
                }
            )
    columns = ["sequence", "position", "token", "first_layer", "last_layer", "importance_max", "label"]
    return {"secondary_sinks": pd.DataFrame(rows, columns=columns)}, {}


_STRING = r"(?:'.*'|\".*\")"
TOPIC = Topic(
    describe=lambda tables, settings: describe_secondary(tables["secondary_sinks"]),
    generate=generate,
    checks={
        r"Secondary sinks: (?P<tokens>[\d,]+) tokens? in (?P<sequences>[\d,]+) sequences? points? along the BOS "
        r"\(or the "
        r"first token that stands for it\) for part of its life and (?:is|are) attended to"
        rf"(?:; (?P<often>\d+) of them (?:is|are) (?P<name>{_STRING}))?\. The strongest is (?P<token>{_STRING}) at "
        r"position (?P<position>\d+) of sequence (?P<sequence>\d+), after layers (?P<first>\d+) to (?P<last>\d+), "
        rf"importance (?P<importance>{NUMBER})\.": check,
    },
    complete=complete,
)
