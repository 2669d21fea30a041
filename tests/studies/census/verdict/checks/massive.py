"""Sentences on massive activations."""

import random
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from sinklens.detectors.massive_activations_verdict import describe_massive
from sinklens.detectors.massive_channels import EPISODE_COLUMNS
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

BOUNDS = {"|h| > 100": "absolute", "|h| > 1000 x median": "relative"}
PLACES = {"at position 0": "start", "at later positions": "others"}


def rows_of(said: dict[str, str], evidence: Evidence, everywhere: bool) -> list[Row]:
    criterion = BOUNDS[said["bound"]]
    rows = evidence.tables["massive_episodes"]
    return [row for row in rows if row["criterion"] == criterion and bool(row["everywhere"]) is everywhere]


def kinds_of(rows: list[Row]) -> dict[tuple[str, int], list[Row]]:
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["bucket"], int(row["channel"])), []).append(row)
    return found


def check_kinds(said: dict[str, str], evidence: Evidence) -> None:
    kinds = kinds_of(rows_of(said, evidence, everywhere=False))
    parts = said["kinds"].split("; ")
    rest = re.fullmatch(r"and (\d+) smaller kinds?", parts[-1])
    counts(rest.group(1) if rest else "0", max(0, len(kinds) - 2), "kinds that are not named")
    parts = parts[:-1] if rest else parts
    want(len(parts) == min(2, len(kinds)), f"{len(kinds)} kinds")
    sizes = sorted((max(row["peak"] for row in kind) for kind in kinds.values()), reverse=True)
    seen = set()
    for number, part in enumerate(parts):
        match = re.fullmatch(r"channel (\d+) (at position 0|at later positions) (.*)", part)
        want(match is not None, f"no kind: {part}")
        channel, place, spans = match.groups()  # type: ignore[union-attr]
        key = (PLACES[place], int(channel))
        want(key in kinds and key not in seen, f"{key} is no kind, or named twice")
        seen.add(key)
        lives = sorted(kinds[key], key=lambda row: row["appears"])
        want(max(row["peak"] for row in lives) == sizes[number], f"{key} is not number {number + 1} by size")
        told = spans.split(" and ")
        want(len(told) == len(lives), f"{key} lives {len(lives)} times")
        for span, row in zip(told, lives, strict=True):
            check_span(span, row)


def check_span(span: str, row: Row) -> None:
    pattern = rf"after layers? (\d+)(?: to (\d+))? \(up to ({NUMBER}), in (\d+)(?: to (\d+))? of ([\d,]+) sequences?\)"
    match = re.fullmatch(pattern, span)
    want(match is not None, f"no span: {span}")
    first, last, peak, least, most, of = match.groups()  # type: ignore[union-attr]
    counts(first, int(row["appears"]), "first layer")
    counts(last or first, int(row["leaves_after"]), "last layer")
    says(peak, row["peak"], "peak")
    counts(least, int(row["n_sequences_least"]), "fewest sequences")
    counts(most or least, int(row["n_sequences"]), "most sequences")
    counts(of, int(row["n_of"]), "sequences")


def check_none(said: dict[str, str], evidence: Evidence) -> None:
    want(not rows_of(said, evidence, everywhere=False), "there are token-specific ones")
    outliers = rows_of(said, evidence, everywhere=True)
    want(bool(outliers) == (said["none"] == "none is token-specific"), f"{len(outliers)} episodes everywhere")


def check_outliers(said: dict[str, str], evidence: Evidence) -> None:
    peaks: dict[int, float] = {}
    for row in rows_of(said, evidence, everywhere=True):
        want(row["token_share"] >= 0.5, "an outlier channel meets it at half of the tokens")
        peaks[int(row["channel"])] = max(row["peak"], peaks.get(int(row["channel"]), 0.0))
    named = [int(word) for word in said["channels"].split(", ")]
    counts(said["more"] or "0", max(0, len(peaks) - 3), "channels that are not named")
    want(len(set(named)) == min(3, len(peaks)) and set(named) <= set(peaks), "outlier channels")
    want([peaks[channel] for channel in named] == sorted(peaks.values(), reverse=True)[:3], "by size")


def check_place(said: dict[str, str], evidence: Evidence) -> None:
    blocks = [row for row in evidence.tables["layers"] if row["layer"] >= 0 and known(row["max_abs"])]
    largest = max(row["max_abs"] for row in blocks)
    there = [row for row in blocks if row["max_abs"] == largest and row["layer"] == int(said["layer"])]
    want(len(there) == 1, "another layer has the largest")
    says(said["size"], largest, "largest |h|")
    if said.get("ratio") is None:
        want(not known(there[0]["max_over_median"]), "the ratio is known")
    else:
        says(said["ratio"], there[0]["max_over_median"], "ratio")
    counts(said["position"], int(there[0]["top_position"]), "position")
    counts(said["channel"], int(there[0]["top_channel"]), "channel")


def check_nothing(said: dict[str, str], evidence: Evidence) -> None:
    want(not evidence.tables["massive_episodes"], "there are episodes")
    check_place(said, evidence)


def complete(sentences: Sequence[str], evidence: Evidence) -> None:
    if "massive_episodes" not in evidence.tables:
        return
    measured = any(row["layer"] >= 0 and known(row["max_abs"]) for row in evidence.tables["layers"])
    want(measured == any("largest |h| is" in each for each in sentences), "the largest entry")
    for bound in BOUNDS:
        rows = rows_of({"bound": bound}, evidence, everywhere=True)
        said = any(each.startswith(f"Not token-specific by {bound}: ") for each in sentences)
        want(bool(rows and measured) == said, f"outlier channels by {bound}")
        if evidence.tables["massive_episodes"] and measured:
            want(any(each.startswith(f"Massive activations by {bound}: ") for each in sentences), bound)


def generate(rng: random.Random) -> tuple[Tables, Settings]:
    """Episodes of few channels (so that kinds come back and tie), and layers; sometimes none, NaN or one of them."""
    n_layers = rng.choice([1, 2, 6, 12])
    layers = [
        {
            "layer": layer,
            "max_abs": rng.choice([5.0, 5.0, rng.uniform(0, 3e4), float("nan") if rng.random() < 0.1 else 7.5]),
            "max_over_median": float("nan") if rng.random() < 0.1 else rng.uniform(1, 2e4),
            "top_position": rng.randrange(64),
            "top_channel": rng.randrange(600),
        }
        for layer in range(-1, n_layers)
    ]
    rows: list[tuple[Any, ...]] = []
    for criterion in BOUNDS.values():
        for bucket in PLACES.values():
            for channel in rng.sample(range(300), rng.choice([0, 0, 1, 2, 5])):
                at, number = rng.randrange(2), 0
                while at < n_layers and (number == 0 or rng.random() < 0.5):
                    last = min(n_layers - 1, at + rng.choice([0, 1, 4]))
                    most = rng.randint(2, 4)
                    peak = rng.choice([700.0, 23000.0, rng.uniform(100, 1e5)])
                    outlier = rng.random() < 0.3
                    rows.append(
                        (
                            criterion, bucket, channel, number, at, last, most, rng.randint(2, most), 4, peak, at,
                            -peak, rng.uniform(0.5, 1) if outlier else 0.1, rng.uniform(1, 50), outlier,
                        )
                    )  # fmt: skip
                    at, number = last + 2, number + 1
    episodes = pd.DataFrame(rows, columns=[*EPISODE_COLUMNS]).astype({"everywhere": bool})
    return {"layers": pd.DataFrame(layers), "massive_episodes": episodes}, {}


_BOUND = r"(?P<bound>\|h\| > 100(?:0 x median)?)"
_PLACE = (
    rf"A sequence's largest \|h\| is (?P<size>{NUMBER}) on average, (?:(?P<ratio>{NUMBER}) times the median, )?"
    r"after layer (?P<layer>\d+), most often at position (?P<position>\d+), channel (?P<channel>\d+)\."
)
TOPIC = Topic(
    describe=lambda tables, settings: describe_massive(tables["layers"], tables["massive_episodes"]),
    generate=generate,
    checks={
        rf"Massive activations by {_BOUND}: (?P<kinds>channel .*)\.": check_kinds,
        rf"Massive activations by {_BOUND}: (?P<none>in no channel|none is token-specific)\.": check_none,
        rf"Not token-specific by {_BOUND}: channels? (?P<channels>\d+(?:, \d+)*)(?: and (?P<more>\d+) more)?, where at "
        r"least half of the tokens after position 0 meet it after some layer\.": check_outliers,
        _PLACE: check_place,
        rf"No massive activation in at least half of the sequences, by either criterion\. {_PLACE}": check_nothing,
    },
    complete=complete,
)
