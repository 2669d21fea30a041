"""Every sentence of a sweep, recomputed from its tables in plain Python: hundreds of generated tables, then runs."""

import math
import random
import re
from typing import Any

import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

from sinklens.interventions import AblateHeads, MaskKeys, ScaleKeys
from sinklens.studies import Sweep, sweep
from sinklens.studies.ablation.sentences import key_sentences, sweep_sentences
from tests import families

NAN = math.nan
NUMBER = r"(?:[+-]?[\d.]+(?:e[+-]?\d+)?|0|n/a)"
SPAN = rf"({NUMBER})(?: \[({NUMBER}), ({NUMBER})\])?"


# ------------------------------------------------------------------ the reader: text and rows in, refuted claims out
def refuted(sentences: list[str], rows: list[dict[str, Any]]) -> list[str]:
    """What the rows do not bear out; every sentence must be understood and every set must have one."""
    wrong, told = [], set()
    for sentence in sentences:
        label, _, text = sentence.partition(": ")
        own = [row for row in rows if row["intervention"] == label]
        singles: dict[str, dict[str, Any]] = {}
        for row in own:
            if row["kind"] == "head" and (row["variant"] not in singles or row["exact"]):
                singles[row["variant"]] = row
        if match := re.match(r"(\S+) \((\d+) heads?\) ", text):
            variants = [row for row in own if row["variant"] == match[1] and row["exact"]]
            told.add((label, match[1]))
            ok = (
                bool(variants)
                and variants[0]["k"] == int(match[2])
                and about_set(text[match.end() :], variants[0], own)
            )
        elif text.startswith("rank correlation"):
            ok = True
        else:
            ok = about_heads(text, list(singles.values()))
        wrong += [] if ok else [sentence]
    for row in rows:
        if row["kind"] in ("group", "top") and (row["intervention"], row["variant"]) not in told:
            wrong.append(f"nothing about {row['variant']}")
    return wrong


def about_heads(text: str, heads: list[dict[str, Any]]) -> bool:
    known = [row for row in heads if not math.isnan(row["delta_loss"])]
    if not known:
        return text == f"the change of the loss is not applicable to any of {count(len(heads))}."
    missing = len(heads) - len(known)
    head = f"of {count(len(known))}" + (f" ({count(missing)} without a value)" if missing else "") + " "
    if not text.startswith(head):
        return False
    text = text[len(head) :]
    values = [row["delta_loss"] for row in known]
    if text == "none changes the loss by more than 1e-06 nats.":
        return all(abs(value) <= 1e-6 for value in values)
    if text.startswith("none raises the loss; "):
        if max(values) > 1e-6:
            return False
        text = text[len("none raises the loss; ") :]
    first, _, last = text.partition(". ")
    claims = {}
    for claim in first.split("; "):
        if match := re.fullmatch(rf"(\S+)( \(estimated\))? (raise|lower)s (?:it|the loss) most: {SPAN} nats", claim):
            row = next((row for row in known if row["variant"] == match[1]), None)
            if row is None or not spans(match.groups()[3:], row) or bool(match[2]) == row["exact"]:
                return False
            claims[match[3]] = ([match[1]], 0)
        elif match := re.fullmatch(
            r"(.+?)(?: and (\d+) more)? share the place of those that (raise|lower) (?:it|the loss) most: "
            rf"({NUMBER}) nats each",
            claim,
        ):
            names = [name.removesuffix(" (estimated)") for name in match[1].split(", ")]
            claims[match[3]] = (names, int(match[2] or 0))
            if any(not shown(match[4], row["delta_loss"], 1.1e-6) for row in known if row["variant"] in names):
                return False
        else:
            return False
    extremes = {"raise": max(values), "lower": min(values)}
    for verb, extreme in extremes.items():
        sign = 1 if verb == "raise" else -1
        if (sign * extreme > 1e-6) != (verb in claims):
            return False
        if verb in claims:
            tied = {row["variant"] for row in known if abs(row["delta_loss"] - extreme) <= 1e-6}
            names, more = claims[verb]
            if not set(names) <= tied or len(names) + more != len(tied):
                return False
    with_interval = [row for row in known if not math.isnan(row["delta_loss_low"])]
    if not with_interval:
        return last == "No head has an interval."
    above = sum(row["delta_loss_low"] > 0 for row in with_interval)
    below = sum(row["delta_loss_high"] < 0 for row in with_interval)
    rest, none = len(with_interval) - above - below, len(known) - len(with_interval)
    tail = f", {none} have none." if none else "."
    return last == f"The 95 % interval lies above 0 for {above}, below for {below} and holds 0 for {rest}{tail}"


def about_set(text: str, row: dict[str, Any], own: list[dict[str, Any]]) -> bool:
    controls = [
        other["delta_loss"]
        for other in own
        if other["kind"] == "random" and other["control_of"] == row["variant"] and not math.isnan(other["delta_loss"])
    ]
    if math.isnan(row["delta_loss"]):
        return text == "has no change of the loss (not applicable)."
    match = re.match(rf"changes the loss by {SPAN} nats", text)
    if not match or not spans(match.groups(), row):
        return False
    text = text[match.end() :]
    if not controls:
        return text == "; there are no random sets to compare it with."
    match = re.fullmatch(
        rf", (\d+) random sets? of as many heads by ({NUMBER})(?: ± ([\d.e+-]+))?; (\d+) of (\d+) lies? as "
        r"high or higher \(one-sided p = ([\d.e-]+)\)\.",
        text,
    )
    if not match:
        return False
    n, mean = len(controls), sum(controls) / len(controls)
    reach = sum(value >= row["delta_loss"] - 1e-6 for value in controls)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in controls) / (n - 1)) if n > 1 else None
    return (
        int(match[1]) == int(match[5]) == n
        and int(match[4]) == reach
        and shown(match[2], mean)
        and (match[3] is None) == (deviation is None)
        and (deviation is None or math.isclose(float(match[3]), deviation, rel_tol=0.06, abs_tol=1e-12))
        and math.isclose(float(match[6]), (1 + reach) / (n + 1), rel_tol=0.06)
    )


def count(number: int) -> str:
    return f"{number} head" + ("" if number == 1 else "s")


def spans(texts: tuple[str | None, ...], row: dict[str, Any]) -> bool:
    value, low, high = texts
    if not shown(str(value), row["delta_loss"]):
        return False
    if math.isnan(row["delta_loss_low"]):
        return low is None
    return (
        low is not None
        and high is not None
        and shown(low, row["delta_loss_low"])
        and shown(high, row["delta_loss_high"])
    )


def shown(text: str, value: float, tolerance: float = 1e-12) -> bool:
    """Three digits of a number, with its sign."""
    if text == "n/a":
        return math.isnan(value)
    found = float(text)
    signs = (found > 0) == (value > 0) or abs(value) <= tolerance
    return signs and math.isclose(found, value, rel_tol=0.006, abs_tol=tolerance) and (found <= 0 or text[0] == "+")


# ------------------------------------------------------------------ generated tables
def generated(seed: int) -> list[dict[str, Any]]:
    """A summary with every trouble a table can have."""
    draw = random.Random(seed)
    kind_of_values = draw.choice(["mixed", "negative", "zero", "rounding", "nan", "ties", "huge"])

    def value() -> float:
        if draw.random() < 0.1:
            return NAN
        return {
            "mixed": draw.gauss(0, 0.1),
            "negative": -abs(draw.gauss(0, 0.1)) - 0.001,
            "zero": 0.0,
            "rounding": draw.uniform(-9e-7, 9e-7),
            "nan": NAN,
            "ties": draw.choice([-0.25, 0.5, 0.5 + 2e-8]),
            "huge": draw.gauss(0, 1e4),
        }[kind_of_values]

    def row(variant: str, kind: str, k: int = 1, of: str | None = None, exact: bool = True) -> dict[str, Any]:
        delta, width = value(), draw.choice([NAN, 0.0, 0.01, 0.2])
        return {
            "intervention": "zero", "variant": variant, "kind": kind, "k": k, "exact": exact, "control_of": of,
            "layer": int(variant[1]) if kind == "head" else None, "head": int(variant[3:]) if kind == "head" else None,
            "delta_loss": delta, "delta_loss_low": delta - width, "delta_loss_high": delta + 2 * width,
            "control_n": None, "control_mean": NAN, "control_sd": NAN, "control_rank": NAN, "control_p": NAN,
        }  # fmt: skip

    rows = [row(f"L{at % 3}H{at // 3}", "head") for at in range(draw.choice([0, 1, 2, 7, 12]))]
    rows += [row(one["variant"], "head", exact=False) for one in rows if draw.random() < 0.3]
    rows += [row(f"L{layer}H9", "head", exact=False) for layer in range(draw.choice([0, 0, 2]))]
    draw.shuffle(rows)
    for name, kind, k in (("top-2", "top", 2), ("mine", "group", 1)):
        if draw.random() < 0.6:
            tested = row(name, kind, k)
            controls = [row(f"random-{name}/{n}", "random", k, of=name) for n in range(draw.choice([0, 1, 2, 5]))]
            compare(tested, [each["delta_loss"] for each in controls])
            rows += [tested, *controls]
    return rows


def compare(tested: dict[str, Any], controls: list[float]) -> None:
    known = [value for value in controls if not math.isnan(value)]
    n = len(known)
    if not n:
        return
    tested["control_n"], tested["control_mean"] = n, sum(known) / n
    if n > 1:
        tested["control_sd"] = float(pd.Series(known).std())
    if not math.isnan(tested["delta_loss"]):
        reach = sum(value >= tested["delta_loss"] - 1e-6 for value in known)
        tested["control_p"] = (1 + reach) / (n + 1)


def say(rows: list[dict[str, Any]]) -> list[str]:
    table = pd.DataFrame(rows)
    if not len(table):
        return []
    return sweep_sentences(table.astype({"control_n": "Int64", "control_of": "str"}), ["zero"], {})


@pytest.mark.parametrize("block", range(4))
def test_generated_tables_bear_every_sentence_out(block: int) -> None:
    for seed in range(100 * block, 100 * (block + 1)):
        rows = generated(seed)
        assert refuted(say(rows), rows) == [], seed


def test_the_reader_refutes_false_sentences() -> None:
    """A checker that accepts anything would prove nothing: swapped words and numbers must be found out."""
    swaps = [("raises the", "lowers the"), ("above 0 for", "below 0 for"), ("+", "-"), ("none raises", "none lowers")]
    swaps += [("lie as high", "lie as low"), ("1 of", "2 of"), ("L0H0", "L1H1"), ("0.", "7.")]
    tried = 0
    for seed in range(120):
        rows = generated(seed)
        for sentence in say(rows):
            for old, new in swaps:
                mutated = sentence.replace(old, new, 1)
                if mutated != sentence and not ("L0H0" in old and "share the place" in sentence):
                    tried += 1
                    others = [each for each in say(rows) if each != sentence]
                    assert refuted([mutated, *others], rows), (mutated, seed)
    assert tried > 120


def test_the_sentences_that_were_false() -> None:
    """All effects negative: "changes the loss most upwards, by -0.00159" was said of the least harmless head."""
    rows = [generated_row(at, delta) for at, delta in enumerate((-0.00159, -0.2))]
    (sentence,) = say(rows)
    assert sentence == (
        "zero: of 2 heads none raises the loss; L1H0 lowers it most: -0.2 [-0.21, -0.19] nats. The 95 % interval lies "
        "above 0 for 0, below for 1 and holds 0 for 1."
    )


def generated_row(at: int, delta: float) -> dict[str, Any]:
    return {
        "intervention": "zero", "variant": f"L{at}H0", "kind": "head", "k": 1, "exact": True, "control_of": None,
        "layer": at, "head": 0, "delta_loss": delta, "delta_loss_low": delta - 0.01, "delta_loss_high": delta + 0.01,
        "control_n": None, "control_mean": NAN, "control_sd": NAN, "control_rank": NAN, "control_p": NAN,
    }  # fmt: skip


# ------------------------------------------------------------------ real runs
def check(result: Sweep) -> None:
    assert refuted(result.verdict, result.tables["summary"].to_dict("records")) == []
    effects = result.tables["effects"]
    means = effects.groupby(["intervention", "variant", "exact"])["delta_loss"].mean()
    for row in result.tables["summary"].to_dict("records"):
        key = (row["intervention"], row["variant"], row["exact"])
        assert row["delta_loss"] == pytest.approx(means[key], abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", ["bb-3l", "tiny-llama", "induction-2l"])
def test_a_built_in_model(name: str) -> None:
    heads = [f"L{layer}H0" for layer in range(2)]
    check(sweep(name, ["zero", "uniform"], heads=heads, ranking=heads, top=[1], controls=2, max_sequences=6))


def test_a_random_model_with_estimates(tiny: TransformerBridge) -> None:
    check(sweep(tiny, tokens=families.random_ids(6, 12).tolist(), approx=3, ranking="own", top=[1, 2], controls=3))


def test_too_few_texts_for_an_interval(tiny: TransformerBridge) -> None:
    result = sweep(tiny, tokens=families.random_ids(2, 12).tolist(), heads=["L0H1", "L1H2"], controls=0)
    check(result)
    assert "No head has an interval." in result.verdict[0]


def test_interventions_on_keys_say_where_the_sink_is_followed() -> None:
    both = {"zero": AblateHeads("all"), "no 0": MaskKeys(0), "two": AblateHeads(["L0H1"]) + ScaleKeys(0, 0.5)}
    (sentence,) = key_sentences({name: each.to_json() for name, each in both.items()})
    assert "under no 0 and two." in sentence and "measure_effects" in sentence
    assert key_sentences({"zero": both["zero"].to_json()}) == []
