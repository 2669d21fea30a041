"""A thousand verdicts of generated tables, none refuted by them."""

import random
import re
from collections import Counter

import pytest

from tests.studies.census.verdict.evidence import Evidence, Refuted, refute
from tests.studies.census.verdict.topics import TOPICS

EACH = 300
IN_ORDER = ("domains", "sinks_after")
"""Tables whose rows come in an order of their own: of the domains and interventions that were asked for."""


@pytest.mark.parametrize("topic", TOPICS)
def test_no_sentence_is_refuted_and_every_kind_comes_up(topic: str) -> None:
    kinds: Counter[str] = Counter()
    said: set[str] = set()
    for seed in range(EACH):
        tables, settings = TOPICS[topic].generate(random.Random(seed))
        evidence = Evidence.of(tables, settings)
        sentences = TOPICS[topic].describe(tables, settings)
        said |= set(sentences)
        for sentence in sentences:
            reason = refute(sentence, evidence, TOPICS)
            assert reason is None, f"seed {seed}: {reason}"
            kinds[sentence.split(" ")[0]] += 1
        try:
            TOPICS[topic].complete(sentences, evidence)
        except Refuted as reason:
            raise AssertionError(f"seed {seed}: {reason} in {sentences}") from None
    assert sum(kinds.values()) > EACH / 4, kinds  # the tables do say something
    for pattern in TOPICS[topic].checks:
        assert any(re.fullmatch(pattern, sentence, re.DOTALL) for sentence in said), pattern


def test_there_are_a_thousand() -> None:
    assert EACH * len(TOPICS) >= 1000


@pytest.mark.parametrize("topic", TOPICS)
def test_the_order_of_the_rows_does_not_matter(topic: str) -> None:
    for seed in range(40):
        tables, settings = TOPICS[topic].generate(random.Random(seed))
        mixed = {
            name: frame if name in IN_ORDER else frame.sample(frac=1, random_state=seed)
            for name, frame in tables.items()
        }
        assert TOPICS[topic].describe(mixed, settings) == TOPICS[topic].describe(tables, settings), seed
