"""Sentences about a calibration, recomputed from the answers in plain Python: gains, losses, form, no answers, ties."""

import json
import math
import random
import re
from typing import Any

import pandas as pd

from sinklens.interventions import ScaleKeys
from sinklens.studies import Calibration

NUMBER = r"[+-]?\d+\.\d+"


def generated(seed: int) -> Calibration:
    """Held-out answers with any mixture of right, wrong and no label, with few prompts and without controls."""
    draw = random.Random(seed)
    n, controls = draw.choice([2, 6, 40]), draw.choice([0, 1, 4])
    variants = {"unchanged": "", "tuned": "L0H1,L1H1"} | {f"random-{at}": "L0H0,L1H0" for at in range(controls)}
    rows = []
    for name in variants:
        valid, right = draw.choice([0.0, 0.5, 0.9, 1.0]), draw.choice([0.0, 0.3, 0.8, 1.0])
        for prompt in range(n):
            answered = draw.random() < valid
            correct = answered and draw.random() < right
            rows.append({"variant": name, "prompt": prompt, "valid": answered, "correct": correct, "entropy": 1.0})
    chosen = json.loads(ScaleKeys(0, 2.0, ["L0H1", "L1H1"]).to_json())
    meta = {"chosen": chosen, "variants": variants, "settings": {"seed": 0}, "notes": []}
    return Calibration(meta, {"answers": pd.DataFrame(rows)})


def rates(found: Calibration, name: str) -> tuple[float, float, float]:
    rows = [row for row in found.answers.to_dict("records") if row["variant"] == name]
    right, valid = (sum(bool(row[what]) for row in rows) for what in ("correct", "valid"))
    return right / len(rows), valid / len(rows), right / valid if valid else math.nan


def refuted(text: str, found: Calibration) -> bool:
    """Whether the answers do not bear the text out."""
    before, after = rates(found, "unchanged"), rates(found, "tuned")
    match = re.match(
        rf"On (\d+) held-out prompts accuracy goes from ({NUMBER}) to ({NUMBER}), by ({NUMBER}) "
        rf"(?:\[({NUMBER}), ({NUMBER})\]|\(no interval: .+?\)): (.+?)\. "
        rf"Valid answers go from ({NUMBER}) to ({NUMBER}), "
        rf"accuracy given validity from (\S+)(?: \(no valid answer\))? to (\S+?)(?: \(no valid answer\))?"
        rf"(?:, by ({NUMBER}) (?:\[({NUMBER}), ({NUMBER})\]|\(no interval: .+?\)))?\. (.+)$",
        text,
    )
    if not match:
        return True
    told = [float(each) for each in (match[2], match[3], match[8], match[9])]
    if any(abs(a - b) > 6e-4 for a, b in zip(told, (before[0], after[0], before[1], after[1]), strict=True)):
        return True
    for word, value in ((match[10], before[2]), (match[11], after[2])):
        if (word == "n/a") != math.isnan(value) or (word != "n/a" and abs(float(word) - value) > 6e-4):
            return True
    gain = after[0] - before[0]
    if abs(float(match[4]) - gain) > 6e-4 or int(match[1]) != len(found.answers) / len(found.meta["variants"]):
        return True
    if not right_word(match, gain, before, after):
        return True
    controls = [rates(found, name)[0] - before[0] for name in found.meta["variants"] if name.startswith("random-")]
    if not controls:
        return match[15] != "There are no random heads to compare with."
    reach = sum(each >= gain - 1e-12 for each in controls)
    last = re.fullmatch(
        rf"(\d+) random sets? of as many heads changes? it by ({NUMBER})(?: \(sd ({NUMBER})\))?; "
        r"(\d+) of (\d+) do(?:es)? at least as well as the chosen ones \(p = (\S+)\)\.",
        match[15],
    )
    if not last or int(last[1]) != len(controls) or int(last[5]) != len(controls) or int(last[4]) != reach:
        return True
    mean = sum(controls) / len(controls)
    return abs(float(last[2]) - mean) > 6e-4 or abs(float(last[6]) - (1 + reach) / (1 + len(controls))) > 0.006


def right_word(match: re.Match[str], gain: float, before: Any, after: Any) -> bool:
    word, _, form = match[7].partition("; a format effect: ")
    conditional = after[2] - before[2]
    if bool(form) != (gain > 0 and not conditional > 0):
        return False
    if form and ("none to compare" in form) != math.isnan(before[2]):
        return False
    if match[5] is None:
        return word == "too few prompts to tell from chance"
    low, high = float(match[5]), float(match[6])
    given = match[13] is not None and float(match[13]) > 0
    if low > 0:
        return word in (
            ("a gain",) if given else ("more right answers, but accuracy given validity is not shown to rise",)
        )
    return word == ("a loss beyond chance" if high < 0 else "no change beyond chance")


def test_generated_answers_bear_the_sentences_out() -> None:
    for seed in range(200):
        found = generated(seed)
        assert not refuted(" ".join(found.verdict), found), (seed, found.verdict)
        assert "nan" not in " ".join(found.verdict)


def test_mutated_sentences_are_refuted() -> None:
    swaps = [
        ("no change beyond", "a loss beyond"),
        ("a gain", "a loss beyond chance"),
        ("a loss beyond chance", "a gain"),
    ]
    swaps += [("accuracy goes from 0", "accuracy goes from 1"), ("Valid answers go from 0", "Valid answers go from 2")]
    swaps += [
        ("at least as well", "worse"),
        ("; a format effect", ""),
        ("too few prompts to tell from chance", "a gain"),
    ]
    tried = 0
    for seed in range(60):
        found = generated(seed)
        for old, new in swaps:
            mutated = " ".join(found.verdict).replace(old, new, 1)
            if mutated != " ".join(found.verdict):
                tried += 1
                assert refuted(mutated, found), mutated
    assert tried > 100


def test_a_fall_is_not_called_no_gain() -> None:
    rows = [
        {
            "variant": name,
            "prompt": prompt,
            "valid": True,
            "correct": name == "unchanged" and prompt % 4 > 0,
            "entropy": 1.0,
        }
        for name in ("unchanged", "tuned")
        for prompt in range(20)
    ]
    meta = generated(0).meta | {"variants": {"unchanged": "", "tuned": "L0H1"}}
    verdict = Calibration(meta, {"answers": pd.DataFrame(rows).assign(entropy=1.0)}).verdict
    assert "a loss beyond chance" in verdict[0] and "There are no random heads" in verdict[2]
