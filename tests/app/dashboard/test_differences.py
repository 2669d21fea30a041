"""What two runs differ in besides what is compared: everything that differs is said, and nothing else."""

from typing import Any

import pytest

from sinklens.app.dashboard.bench import open_source
from sinklens.app.dashboard.differences import differences
from sinklens.models import load
from sinklens.studies import Census, scan

TEXTS = [
    "Once there was a king who had three daughters and no sons, and he was old.",
    "The sea was calm that morning, and cold, and no ship was to be seen on it.",
]


def measured(texts: list[str], **options: Any) -> Census:
    return scan(load("tiny-llama"), texts, detectors=["sinks"], **options)


@pytest.fixture(scope="module")
def plain() -> Census:
    return measured(TEXTS, max_tokens=24)


def said(first: Census, second: Census) -> list[str]:
    bench = open_source(first)
    return differences(bench.run("live-1"), bench.run(bench.add(second)))


@pytest.mark.parametrize("cut", [24, None])
def test_a_bos_alone(plain: Census, cut: int | None) -> None:
    """Cut at the same number of tokens the texts end a token apart; that is the BOS, not the text."""
    with_bos = plain if cut else measured(TEXTS)
    found = said(with_bos, measured(TEXTS, bos="no", max_tokens=cut))
    assert len(found) == 1 and found[0].startswith("One has a BOS where the other has none")


def test_the_same_run(plain: Census) -> None:
    assert said(plain, plain) == []
    assert said(plain, measured(TEXTS, max_tokens=24, eps=0.2)) == ["The thresholds of a sink differ: eps 0.3 and 0.2."]


def test_other_texts(plain: Census) -> None:
    found = said(plain, measured([TEXTS[1], TEXTS[0]], max_tokens=24))
    assert len(found) == 1 and found[0].startswith("The texts differ: their tokens are not the same")
    assert "BOS" not in found[0]


def test_fewer_texts(plain: Census) -> None:
    fewer = measured(TEXTS[:1], max_tokens=24)
    assert said(plain, fewer) == ["B has only the first 1 of the 2 texts of A."]
    assert said(fewer, plain) == ["A has only the first 1 of the 2 texts of B."]


def test_longer_texts(plain: Census) -> None:
    found = said(plain, measured(TEXTS, max_tokens=20))
    assert found == [
        "The texts have different lengths: 2 of 24 tokens and 2 of 20 tokens; a sink rate depends on them."
    ]
    both = said(plain, measured(TEXTS, bos="no", max_tokens=20))
    assert [one.split(" ")[0] for one in both] == ["One", "The"]


def test_a_built_in_text_is_cut_elsewhere_with_a_bos() -> None:
    model = load("tiny-llama")
    found = said(*(scan(model, max_sequences=3, bos=bos, detectors=["sinks"]) for bos in ("yes", "no")))
    assert [one.split(" ")[0] for one in found] == ["One", "The"] and "cut elsewhere when a BOS" in found[1]
