"""What the sentences say is counted again, with other code, from tables that are drawn at random."""

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sinklens.studies import SplitCheck, StreamingGates


def made_gates(alpha: list[float], loss: list[float]) -> StreamingGates:
    table = pd.DataFrame({"layer": [n // 2 for n in range(len(alpha))], "kv_head": [n % 2 for n in range(len(alpha))]})
    losses = pd.DataFrame({"step": range(len(loss)), "loss": loss, "distillation": [each / 4 for each in loss]})
    return StreamingGates({}, {"gates": table.assign(alpha=alpha), "losses": losses})


@pytest.mark.parametrize("seed", range(5))
def test_gates_are_counted_and_the_ends_named(seed: int) -> None:
    draw = np.random.default_rng(seed)
    alpha, loss = draw.random(int(draw.integers(1, 9))), draw.random(4)
    first, second = made_gates(alpha.tolist(), loss.tolist()).verdict
    count, of = map(int, re.findall(r"\d+", first)[:2])
    assert (count, of) == (sum(each >= 0.5 for each in alpha), len(alpha))
    named = re.findall(r"L(\d)KV(\d) \(([\d.]+)\)", first)
    for (layer, kv_head, value), wanted in zip(named, (max(alpha), min(alpha)), strict=True):
        assert alpha[2 * int(layer) + int(kv_head)] == wanted and float(value) == pytest.approx(wanted, abs=0.0051)
    numbers = [float(each) for each in re.findall(r"[\d.]+\d", second)]
    assert numbers[:2] == pytest.approx([loss[0], loss[-1]], rel=0.01)
    assert numbers[2] == pytest.approx(loss[-1] / 4, rel=0.01) and "4 steps" in second


def test_ties_and_nothing() -> None:
    (first,) = made_gates([1.0, 1.0, 0.5], []).verdict
    assert first.startswith("3 of 3 KV heads") and "L0KV0 and 1 more (1.00), the lowest that of L1KV0 (0.50)" in first
    (only,) = made_gates([], []).verdict
    assert only == "No KV head has a gate: no layer of this model has softmax attention."


def condition(name: str, kept: int, exact: float, low: float, high: float) -> dict[str, Any]:
    return {
        "condition": name, "n_retrieval_kv": kept, "exact_match": exact, "delta_exact_match": exact - 0.9,
        "delta_exact_match_low": low, "delta_exact_match_high": high, "kv_kept": 0.4,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_a_check_names_its_controls(seed: int) -> None:
    draw = np.random.default_rng(seed)
    random = draw.random(int(draw.integers(1, 6))).round(2)
    rows = [condition("full", 8, 0.9, 0, 0), condition("split", 2, 0.5, -0.5, -0.3)]
    rows += [condition(f"random {n}", 2, each, -1, 0) for n, each in enumerate(random)]
    rows += [condition("streaming", 0, 0.1, -0.85, math.nan)]
    check = SplitCheck({"controls": {"notes": ["A note."]}}, {"conditions": pd.DataFrame(rows)})
    split, full, controls, streaming, note = check.verdict
    assert split == (
        "With full attention in 2 KV heads of 8 and 40% of the cache, 50% of the questions are answered exactly "
        "(-40 [-50, -30] points against full attention everywhere)."
    )
    assert "90%" in full and note == "A note."
    mean, sets, low, high, beaten = map(int, re.findall(r"\d+", controls))
    assert (sets, beaten) == (len(random), int((random < 0.5).sum()))
    assert [mean, low, high] == pytest.approx([100 * random.mean(), 100 * random.min(), 100 * random.max()], abs=0.51)
    assert streaming.startswith("With streaming everywhere 10% of the questions") and "-80 [-85" in streaming


def test_full_attention_alone_has_one_sentence() -> None:
    check = SplitCheck({"controls": {"notes": []}}, {"conditions": pd.DataFrame([condition("full", 8, 1.0, 0, 0)])})
    assert check.verdict == ["With full attention everywhere 100% of the questions are answered exactly."]
