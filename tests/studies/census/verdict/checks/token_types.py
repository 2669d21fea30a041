"""Sentences on which tokens after position 0 are sinks or massive."""

import ast
import random
from collections.abc import Sequence
from typing import Any

import pandas as pd

from sinklens.detectors.token_types import token_types
from sinklens.detectors.token_types_verdict import describe_token_types
from tests.studies.census.verdict.evidence import (
    NUMBER,
    Evidence,
    Row,
    Settings,
    Tables,
    Topic,
    counts,
    known,
    says,
    want,
)

COLUMNS = {"|h| > 100": "absolute", "|h| > 1000 x median": "ratio"}


def after_start(evidence: Evidence, by: str) -> list[Row]:
    return [row for row in evidence.tables["token_types"] if row["by"] == by and row["occurrence"] != "start"]


def total(evidence: Evidence, column: str) -> int:
    return int(sum(row[column] for row in after_start(evidence, "class") if known(row[column])))


def outstanding(evidence: Evidence, count: str, share: str) -> list[Row]:
    rows = after_start(evidence, "token")
    return [row for row in rows if known(row[count]) and row[count] >= 3 and row[share] >= 2 * row["token_share"]]


def check_group(said: dict[str, str], evidence: Evidence, occurrence: str, count: str, share: str) -> Row:
    rows = outstanding(evidence, count, share)
    name = ast.literal_eval(said["name"])
    mine = [row for row in rows if row["name"] == name and row["occurrence"] == occurrence]
    want(len(mine) == 1, "no such group stands out")
    want(mine[0][count] == max(row[count] for row in rows), "another has more")
    counts(said["mine"], int(mine[0][count]), count)
    says(said["percent"], 100 * mine[0]["token_share"], "share of the tokens")
    return mine[0]


def check_sinks(said: dict[str, str], evidence: Evidence) -> None:
    n_heads = len(evidence.tables["heads"])
    counts(said["heads"], n_heads, "heads")
    counts(said["least"], max(1, -(-n_heads * 5 // 100)), "5 % of the heads")
    counts(said["judged"], total(evidence, "n_judged"), "judged tokens")
    counts(said.get("sinks") or "0", total(evidence, "n_sinks"), "sink tokens")
    if not said.get("name"):
        want(not outstanding(evidence, "n_sinks", "sink_share"), "some stand out")
        return
    occurrence = "first" if said["first"] else "later"
    row = check_group(said, evidence, occurrence, "n_sinks", "sink_share")
    counts(said["again"], int(row["n_sinks"]), "sinks")
    counts(said["such"], int(row["n_judged"]), "such tokens")
    says(said["median"], row["sink_heads_median"], "median heads")


def check_massive(said: dict[str, str], evidence: Evidence) -> None:
    column = COLUMNS[said["bound"]]
    counts(said["massive"], total(evidence, f"n_massive_{column}"), "massive tokens")
    counts(said["tokens"], total(evidence, "n_tokens"), "tokens")
    check_group(said, evidence, said["occurrence"], f"n_massive_{column}", f"massive_{column}_share")


def complete(sentences: Sequence[str], evidence: Evidence) -> None:
    if "token_types" not in evidence.tables:
        return
    judged = bool(evidence.tables.get("heads")) and total(evidence, "n_judged") > 0
    want(judged == any("for" in each and each.startswith("After position 0, ") for each in sentences), "sink tokens")
    for bound, column in COLUMNS.items():
        few = 0 < 2 * total(evidence, f"n_massive_{column}") < total(evidence, "n_tokens")
        few = few and bool(outstanding(evidence, f"n_massive_{column}", f"massive_{column}_share"))
        want(few == any(f"massive by {bound}: " in each for each in sentences if each.startswith("After")), bound)


def generate(rng: random.Random) -> tuple[Tables, Settings]:
    """Few strings, quotes and marks among them; sinks and massive tokens from none to nearly all."""
    words = [" the", ".", " a", "\n", "'", '"', "it's \"", " 7"]
    sink, massive = rng.choice([0.0, 0.05, 0.9]), rng.choice([0.0, 0.05, 0.9])
    n_heads = rng.choice([0, 1, 20, 21, 270])
    rows: list[dict[str, Any]] = []
    for sequence in range(rng.choice([1, 4])):
        for position in range(rng.choice([1, 2, 40])):
            token = rng.choice(words)
            special = token == " the" and rng.random() < 0.8
            rows.append(
                {
                    "sequence": sequence,
                    "position": position,
                    "token": token,
                    "is_special": False,
                    "n_sink_heads": float("nan")
                    if rng.random() < 0.1 or not n_heads
                    else float(n_heads * (special or rng.random() < sink)),
                    "is_massive_absolute": special or rng.random() < massive,
                    "is_massive_ratio": rng.random() < massive,
                }
            )
    heads = pd.DataFrame({"head": range(n_heads)})
    return {"token_types": token_types(pd.DataFrame(rows), n_heads), "heads": heads}, {}


_SINK = (
    r"(?P<judged>[\d,]+) tokens? (?:is a sink|are a sink) for (?P<least>\d+) heads? or more \(5 % of (?P<heads>\d+)\)"
)
_NAME = r"(?P<name>'.*'|\".*\")"
_BOUND = r"(?P<bound>\|h\| > 100(?:0 x median)?)"
TOPIC = Topic(
    describe=lambda tables, settings: describe_token_types(tables["token_types"], len(tables["heads"])),
    generate=generate,
    checks={
        rf"After position 0, none of {_SINK}\.": check_sinks,
        rf"After position 0, (?P<sinks>[\d,]+) of {_SINK}; no token stands out among them\.": check_sinks,
        rf"After position 0, (?P<sinks>[\d,]+) of {_SINK}: (?P<mine>[\d,]+) of them are (?P<first>the first )?"
        rf"{_NAME}(?: of a sequence| when it comes again), which is (?P<percent>{NUMBER}) % of the tokens; "
        rf"(?P<again>[\d,]+) of (?P<such>[\d,]+) such tokens are, and their median is (?P<median>{NUMBER}) heads"
        r"\.": check_sinks,
        rf"After position 0, (?P<massive>[\d,]+) of (?P<tokens>[\d,]+) tokens are massive by {_BOUND}: "
        rf"(?P<mine>[\d,]+) of them are {_NAME} \((?P<occurrence>first|later) occurrences\), "
        rf"which is (?P<percent>{NUMBER}) % of the tokens"
        r"\.": check_massive,
    },
    complete=complete,
)
