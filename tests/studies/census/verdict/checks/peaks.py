"""Sentences on residual peaks."""

import ast
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from sinklens.detectors.residual_peaks import PEAK_COLUMNS
from sinklens.detectors.residual_peaks_verdict import describe_peaks
from tests.studies.census.verdict.evidence import (
    LAYERS,
    NUMBER,
    Evidence,
    Row,
    Settings,
    Tables,
    Topic,
    counts,
    known,
    layers_of,
    says,
    want,
)


def blocks_of(evidence: Evidence) -> list[Row]:
    return [row for row in evidence.tables["layers"] if row["layer"] >= 0 and known(row["peak_ratio"])]


def top_of(evidence: Evidence) -> Row:
    blocks = blocks_of(evidence)
    most = max(row["peak_ratio"] for row in blocks)
    return min((row for row in blocks if row["peak_ratio"] == most), key=lambda row: row["layer"])


def largest_by(evidence: Evidence, column: str) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for row in evidence.tables["peaks"]:
        if row["layer"] == top_of(evidence)["layer"]:
            found[row[column]] += int(row["n_largest"])
    return found


def sequences(evidence: Evidence, layer: int) -> int:
    (number,) = {int(row["n_of"]) for row in evidence.tables["peaks"] if row["layer"] == layer}
    return number


def fixed(evidence: Evidence) -> tuple[str, Any] | None:
    """Where at least half of the sequences have their largest norm: a position before a token."""
    if top_of(evidence)["peak_ratio"] < 1.5:
        return None
    for column in ("position", "token"):
        found = largest_by(evidence, column)
        most = max(found.values())
        if 2 * most >= sequences(evidence, top_of(evidence)["layer"]):
            return column, min(place for place, count in found.items() if count == most)
    return None


def check_size(said: dict[str, str], evidence: Evidence) -> Row:
    top = top_of(evidence)
    counts(said["layer"], int(top["layer"]), "layer of the largest")
    says(said["ratio"], top["peak_ratio"], "ratio")
    return top


def check_none(said: dict[str, str], evidence: Evidence) -> None:
    want(check_size(said, evidence)["peak_ratio"] < 1.5, "there is a peak")


def check_peak(said: dict[str, str], evidence: Evidence) -> None:
    top = check_size(said, evidence)
    want(top["peak_ratio"] >= 1.5 and (top["peak_ratio"] >= 3) == (said["kind"] == "Residual"), "kind")
    high = {int(row["layer"]) for row in blocks_of(evidence) if row["peak_ratio"] >= 3}
    want(layers_of(said["high"] or "") == high, f"3 times or more after {high}")
    counts(said["of"], sequences(evidence, top["layer"]), "sequences")
    place = fixed(evidence)
    if said.get("most"):
        want(place is None, "there is a fixed place")
        found = largest_by(evidence, "position")
        place = ("position", min(key for key, count in found.items() if count == max(found.values())))
        counts(said["most"], place[1], "best position")
    elif said.get("name"):
        want(place == ("token", ast.literal_eval(said["name"])), f"it is at {place}")
    else:
        want(place == ("position", int(said["position"])), f"it is at {place}")
        names = {
            row["token"]
            for row in evidence.tables["peaks"]
            if row["layer"] == top["layer"] and row["n_largest"] and row["position"] == int(said["position"])
        }
        told = {ast.literal_eval(said["token"])} if said["token"] else set()
        want(told == (names if len(names) == 1 else set()), f"tokens {names}")
    counts(said["count"], largest_by(evidence, place[0])[place[1]], "sequences with the largest norm there")  # type: ignore[index]


def norms_at(evidence: Evidence, layer: int, position: int) -> tuple[float, float]:
    """At the position, and the mean of all others."""
    rows = [row for row in evidence.tables["residual_norms"] if row["layer"] == layer and row["n_sequences"] > 0]
    others = [row for row in rows if row["position"] != position and known(row["resid_norm"])]
    weights = sum(row["n_sequences"] for row in rows if row["position"] != position)
    total = sum(row["resid_norm"] * row["n_sequences"] for row in others)
    (own,) = [row["resid_norm"] for row in rows if row["position"] == position]
    return own, total / weights if weights else math.nan


def check_growth(said: dict[str, str], evidence: Evidence) -> None:
    place, block = fixed(evidence), int(top_of(evidence)["layer"])
    want(place is not None and place[0] == "position", "no fixed position")
    position = place[1]  # type: ignore[index]
    counts(said["layer"], block, "layer")
    (own, others), (own_start, others_start) = norms_at(evidence, block, position), norms_at(evidence, -1, position)
    says(said["start"], own_start, "norm before the first layer")
    says(said["end"], own, "norm after the layer")
    says(said["growth"], own / own_start, "growth")
    says(said["rest"], others / others_start, "growth of the others")
    depths = {int(row["layer"]) for row in evidence.tables["residual_norms"] if row["layer"] >= 0}
    after = {layer: norms_at(evidence, layer, position)[0] for layer in depths}
    most = max(value for value in after.values() if known(value))
    if said["reached"]:
        want(after.get(int(said["at"])) == most, "another layer has the largest norm")
        says(said["reached"], most, "largest norm")
    else:
        want(after[block] == most, "it grows further")


def elsewhere(evidence: Evidence) -> dict[int, Counter[str]]:
    place = fixed(evidence)
    found: dict[int, Counter[str]] = {}
    for row in evidence.tables["peaks"]:
        if row["layer"] >= 0 and row["n_peaks"] and (place is None or row[place[0]] != place[1]):
            found.setdefault(int(row["layer"]), Counter())[row["token"]] += int(row["n_peaks"])
    return found


def check_elsewhere(said: dict[str, str], evidence: Evidence) -> None:
    found = elsewhere(evidence)
    totals = {layer: sum(tokens.values()) for layer, tokens in found.items()}
    block = min(layer for layer, total in totals.items() if total == max(totals.values()))
    want((said["prefix"] == "Elsewhere") == (fixed(evidence) is not None), "prefix")
    counts(said["layer"], block, "layer with the most")
    counts(said["tokens"], totals[block], "peaks")
    counts(said["of"], sequences(evidence, block), "sequences")
    name = ast.literal_eval(said["name"])
    want(found[block][name] == max(found[block].values()), "another token has more")
    counts(said["count"], found[block][name], "peaks of that token")


def complete(sentences: Sequence[str], evidence: Evidence) -> None:
    if "peaks" not in evidence.tables:
        return
    measured = bool(blocks_of(evidence))
    want(measured == any("a sequence's largest residual norm is" in each for each in sentences), "the largest norm")
    if measured:
        want(bool(elsewhere(evidence)) == any("is a residual peak" in s or "are residual" in s for s in sentences), "m")


def generate(rng: random.Random) -> tuple[Tables, Settings]:
    """Sequences whose largest token is at one place, at one word or anywhere; ties, NaN and short models."""
    n_layers, n_sequences, length = rng.choice([1, 3, 12]), rng.choice([1, 2, 9]), rng.choice([3, 5, 20])
    style, words = rng.choice(["place", "word", "any", "any"]), [" the", ".", "'", '"', "\n"]
    position, scale = rng.choice([0, 0, 1, 2]), rng.choice([1.2, 2.0, 50.0, 1e4])
    layers, peaks, norms = [], [], []
    for layer in range(-1, n_layers):
        largest: Counter[tuple[int, str]] = Counter()
        above: Counter[tuple[int, str]] = Counter()
        ratio = scale if rng.random() < 0.5 else rng.uniform(1, scale)
        for _ in range(n_sequences):
            where = {"place": position, "word": rng.randrange(length), "any": rng.randrange(length)}[style]
            token = " the" if style == "word" else rng.choice(words)
            largest[where, token] += 1
            above[where, token] += ratio >= 3
            while rng.random() < 0.4:
                above[rng.randrange(length), rng.choice(words)] += 1
        lost = rng.random() < 0.1
        for key in sorted({*largest, *above}) if not lost else []:
            if largest[key] or above[key]:
                peaks.append((layer, *key, largest[key], above[key], n_sequences, ratio))
        layers.append({"layer": layer, "peak_ratio": math.nan if lost else ratio})
        for place in range(length):
            norm = rng.choice([3.0, rng.uniform(1, 2e4), math.nan if rng.random() < 0.05 else 7.0])
            norms.append({"layer": layer, "position": place, "resid_norm": norm, "n_sequences": n_sequences})
    return {
        "layers": pd.DataFrame(layers),
        "peaks": pd.DataFrame(peaks, columns=[*PEAK_COLUMNS]),
        "residual_norms": pd.DataFrame(norms),
    }, {}


_NAME = r"'.*'|\".*\""
_SIZE = rf"after layer (?P<layer>\d+) a sequence's largest residual norm is (?P<ratio>{NUMBER}) times its median"
_HIGH = rf"(?:; 3 times or more after (?P<high>{LAYERS}))?"
_THERE = r"and it stands there in (?P<count>\d+) of (?P<of>[\d,]+) sequences?"
_KIND = r"(?P<kind>Residual|Mild residual) peak at"
TOPIC = Topic(
    describe=lambda tables, settings: describe_peaks(tables["layers"], tables["peaks"], tables["residual_norms"]),
    generate=generate,
    checks={
        rf"No residual peak: at most, {_SIZE} on average\.": check_none,
        rf"{_KIND} position (?P<position>\d+)(?: \((?P<token>{_NAME})\))?: {_SIZE} on average, {_THERE}{_HIGH}"
        r"\.": check_peak,
        rf"{_KIND} the token (?P<name>{_NAME}) wherever it stands: {_SIZE} on average, {_THERE}{_HIGH}\.": check_peak,
        rf"{_KIND} no fixed place: {_SIZE} on average, most often at position (?P<most>\d+) \((?P<count>\d+) of "
        rf"(?P<of>\d+)\){_HIGH}\.": check_peak,
        rf"Growth: the norm there goes from (?P<start>{NUMBER}) before the first layer to (?P<end>{NUMBER}) after "
        rf"layer (?P<layer>\d+) \(x(?P<growth>{NUMBER}); the other tokens' x(?P<rest>{NUMBER})\)(?:, and reaches "
        rf"(?P<reached>{NUMBER}) after layer (?P<at>\d+))?\.": check_growth,
        r"(?P<prefix>Elsewhere|Single tokens): after layer (?P<layer>\d+), (?P<tokens>[\d,]+) tokens? in (?P<of>\d+) "
        r"sequences? (?:are residual peaks|is a residual peak) \(3 times their sequence's median or more\), most "
        rf"often (?P<name>{_NAME}) \((?P<count>\d+)\)\.": check_elsewhere,
    },
    complete=complete,
)
