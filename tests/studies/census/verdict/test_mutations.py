"""A checker that lets a wrong number or name pass is no checker."""

import random
import re

import pandas as pd
import pytest

from tests.studies.census.verdict.evidence import NUMBER, Evidence, refute
from tests.studies.census.verdict.topics import TOPICS


def wrong_numbers(sentence: str) -> list[str]:
    """The sentence with each of its numbers changed, one at a time."""
    out = []
    for found in re.finditer(rf"(?<![\w.'-]){NUMBER}(?![\w'])", sentence):
        old = found.group()
        mantissa, _, exponent = old.partition("e")
        decimals = len(mantissa.partition(".")[2])
        new = f"{float(mantissa) * 1.5 + 2:.{decimals}f}" + (f"e{exponent}" if exponent else "")
        out.append(sentence[: found.start()] + new + sentence[found.end() :])
    return out


def wrong_heads(sentence: str) -> list[str]:
    """The sentence with each head renamed to one that does not exist."""
    return [
        sentence[: found.start()] + "L98H76" + sentence[found.end() :] for found in re.finditer(r"L\d+H\d+", sentence)
    ]


@pytest.mark.parametrize("topic", TOPICS)
def test_a_wrong_number_or_name_is_refuted(topic: str) -> None:
    changed = 0
    for seed in range(120):
        tables, settings = TOPICS[topic].generate(random.Random(seed))
        evidence = Evidence.of(tables, settings)
        for sentence in TOPICS[topic].describe(tables, settings):
            for wrong in wrong_numbers(sentence) + wrong_heads(sentence):
                changed += 1
                assert refute(wrong, evidence, TOPICS) is not None, f"seed {seed}: passed as true: {wrong}"
    assert changed > 100


def test_the_old_verdict_on_a_saturated_rate_is_refuted() -> None:
    tables, settings = TOPICS["sinks"].generate(random.Random(1))
    row = {"head": 0, "sink_position": 0, "sink_rate": 1.0, "null": 0.07, "is_sink": True}
    row |= {"importance_first": 0.5, "null_first": 0.07}
    alphas = {3: 0.69, 18: 0.995}
    tables["heads"] = pd.DataFrame(
        [row | {"layer": layer, "importance": alpha, "ratio": alpha / 0.07} for layer, alpha in alphas.items()]
    )
    sentence, *_ = TOPICS["sinks"].describe(tables, settings)
    evidence = Evidence.of(tables, settings)
    assert refute(sentence, evidence, TOPICS) is None
    head, _, _ = sentence.partition("Strongest: ")
    old = f"{head}Strongest: L3H0, importance 0.690, sink rate 1.00, 9.9 times uniform attention."
    assert "strongest" in str(refute(old, evidence, TOPICS))


def test_an_unknown_sentence_is_refuted() -> None:
    tables, settings = TOPICS["sinks"].generate(random.Random(0))
    assert "0 checkers" in str(refute("All is well.", Evidence.of(tables, settings), TOPICS))
