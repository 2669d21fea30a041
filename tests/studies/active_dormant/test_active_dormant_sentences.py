"""Sentences about active and dormant heads, read back and held against generated tables in plain Python."""

import math
import random
import re
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pandas as pd

from sinklens.studies.active_dormant.result import active_dormant_sentences, change, evidence

NAN = math.nan
LABELS = ("active", "dormant", "idle", "loaded sink", "unclear", "not judged")


def generated(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Heads and comparisons with equal labels, missing intervals and numbers, one group or several."""
    draw = random.Random(seed)
    groups = [("prose", "all"), ("code", "all"), ("code", "stop"), ("text", "line")][: draw.choice([1, 2, 2, 4])]
    heads = []
    for layer, head in [(0, 0), (0, 1), (3, 2)][: draw.choice([1, 3])]:
        for domain, name in groups:
            numbers = {
                key: NAN if draw.random() < 0.2 else round(draw.gauss(0, 0.3), draw.choice([1, 5]))
                for key in ("mass", "null", "delta", "delta_low", "delta_high", "norm_ratio", "own_ratio")
            }
            row = {"layer": layer, "head": head, "domain": domain, "class": name, **numbers}
            label = draw.choice(LABELS[: draw.choice([1, 2, 6])])
            heads.append(row | {"label": label, "evidence": evidence(SimpleNamespace(**row))})
    rows = []
    for one, other in combinations(heads, 2):
        same_head = (one["layer"], one["head"]) == (other["layer"], other["head"])
        if same_head and (one["domain"] == other["domain"] or one["class"] == other["class"]):
            opposite = {one["label"], other["label"]} == {"active", "dormant"}
            rows.append(
                {"layer": one["layer"], "head": one["head"], "domain": one["domain"], "class": one["class"]}
                | {"other_domain": other["domain"], "other_class": other["class"]}
                | {"active_dormant": opposite and draw.random() < 0.5}
            )
    columns = ["layer", "head", "domain", "class", "other_domain", "other_class", "active_dormant"]
    return pd.DataFrame(heads), pd.DataFrame(rows, columns=columns)


def refuted(sentences: list[str], heads: list[dict[str, Any]], contrasts: list[dict[str, Any]]) -> list[str]:
    """Sentences that the tables do not bear out, or comparisons that no sentence is about."""
    wrong, left = [], [row for row in contrasts if row["active_dormant"]]
    if left:
        for sentence in sentences:
            match = re.fullmatch(r"L(\d+)H(\d+) is active on (.+?) \((.+)\) and dormant on (.+?) \((.+)\)\.", sentence)
            if not match:
                wrong.append(sentence)
                continue
            own = {place(row): row for row in heads if (row["layer"], row["head"]) == (int(match[1]), int(match[2]))}
            ends = [own.get(match[3]), own.get(match[5])]
            states = [end and end["label"] for end in ends]
            told = [end and words(end) for end in ends]
            if states != ["active", "dormant"] or told != [match[4], match[6]]:
                wrong.append(sentence)
                continue
            for row in left:
                pair = {(row["domain"], row["class"]), (row["other_domain"], row["other_class"])}
                if (row["layer"], row["head"]) == (int(match[1]), int(match[2])) and pair == {
                    (end["domain"], end["class"]) for end in ends if end
                }:
                    left.remove(row)
                    break
            else:
                wrong.append(sentence)
        return wrong + [f"nothing about {row}" for row in left]
    (sentence,) = sentences
    first, _, counts = sentence.removesuffix(".").rpartition("; labels: ")
    numbers = {name: int(count) for count, name in (each.split(" ", 1) for each in counts.split(", "))}
    if numbers != {name: n for name in LABELS if (n := sum(row["label"] == name for row in heads))}:
        return [sentence]
    states = {(row["layer"], row["head"], row["domain"], row["class"]): row["label"] for row in heads}
    opposite = sum(
        {states[row["layer"], row["head"], row["domain"], row["class"]]}
        | {states[row["layer"], row["head"], row["other_domain"], row["other_class"]]}
        == {"active", "dormant"}
        for row in contrasts
    )
    expected = f"In none of {len(contrasts)} comparisons is a head active on one side and dormant on the other"
    if not contrasts:
        expected = "No head is compared: there is one domain and one token class only"
    elif opposite:
        expected = (
            f"In none of {len(contrasts)} comparisons is a head shown to be active on one side and dormant on the "
            f"other: {opposite} have these labels, but an interval of the difference holds 0 or is missing"
        )
    return [] if first == expected else [sentence]


def place(row: dict[str, Any]) -> str:
    if row["class"] == "all":
        return str(row["domain"])
    return str(row["class"]) if row["domain"] == "text" else f"{row['class']} in {row['domain']}"


def words(row: dict[str, Any]) -> str:
    """The evidence in other code: what is missing is not spoken of, and no number is NaN."""
    known = {key: value for key, value in row.items() if isinstance(value, float) and value == value}
    parts = []
    if "mass" in known:
        parts.append(f"{known['mass']:.2f} of its attention on the sink")
        parts[-1] += f", {known['null']:.2f} if uniform" if "null" in known else ""
    if "delta" in known:
        ends = [row["delta_low"], row["delta_high"]]
        numbers = [re.sub(r"^-(0\.0+)$", r"+\1", f"{value:+.3f}") for value in (known["delta"], *ends)]
        interval = f"[{numbers[1]}, {numbers[2]}]" if not any(map(math.isnan, ends)) else "(no interval)"
        parts.append(f"zeroing it changes the loss by {numbers[0]} {interval} nats")
    if "norm_ratio" in known:
        parts.append(f"writes {known['norm_ratio']:.2f} times the layer's mean head")
    if "own_ratio" in known:
        parts.append(f"{known['own_ratio']:.2f} times its own most")
    return "; ".join(parts) or "nothing was measured"


def test_generated_tables_bear_the_sentences_out() -> None:
    for seed in range(300):
        heads, contrasts = generated(seed)
        said = active_dormant_sentences(heads, contrasts)
        assert refuted(said, heads.to_dict("records"), contrasts.to_dict("records")) == [], seed
        assert "nan" not in " ".join(said)


def test_mutated_sentences_are_refuted() -> None:
    tried = 0
    for seed in range(150):
        heads, contrasts = generated(seed)
        said = active_dormant_sentences(heads, contrasts)
        for old, new in (
            ("active on", "dormant on"),
            ("L0H", "L3H"),
            ("In none of ", "In none of 1"),
            (" active", "0 active"),
        ):
            mutated = [sentence.replace(old, new, 1) for sentence in said]
            if mutated != said:
                tried += 1
                assert refuted(mutated, heads.to_dict("records"), contrasts.to_dict("records")), mutated
    assert tried > 100


def test_labels_alone_prove_no_difference() -> None:
    """ "No head is active on one and dormant on another" was said where two heads had just these labels."""
    heads = pd.DataFrame(
        [
            {"layer": 0, "head": 0, "domain": domain, "class": "all", "label": label, "evidence": ""}
            for domain, label in (("a", "active"), ("b", "dormant"))
        ]
    )
    row = {"layer": 0, "head": 0, "domain": "a", "class": "all", "other_domain": "b", "other_class": "all"}
    (sentence,) = active_dormant_sentences(heads, pd.DataFrame([row | {"active_dormant": False}]))
    assert "shown to be" in sentence and "1 have these labels" in sentence
    assert change(-0.0001, -0.0002, 0.0) == "+0.000 [+0.000, +0.000]"
