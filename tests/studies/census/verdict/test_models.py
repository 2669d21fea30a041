"""Verdicts of the built-in models and of random ones of other families, held against their own tables."""

from pathlib import Path

import pytest

from sinklens import Census, load, scan
from tests import families
from tests.studies.census.verdict.evidence import Evidence, refute
from tests.studies.census.verdict.topics import TOPICS


def refutations(census: Census) -> list[str]:
    """What is wrong in a census' verdict, and what its tables hold and the verdict leaves out."""
    evidence = Evidence.of(census.tables, census.meta["settings"])
    sentences = census.verdict
    for name, topic in TOPICS.items():
        if name != "domains" or "domains" in census.tables:
            topic.complete(sentences, evidence)
    return [reason for each in sentences if (reason := refute(each, evidence, TOPICS))]


@pytest.mark.parametrize("name", ["bb-1l", "bb-3l", "induction-2l", "tiny-llama"])
def test_built_in_models(name: str) -> None:
    assert refutations(scan(name, max_sequences=12, maps=0)) == []


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss", "qwen3_next", "mamba", "olmo2"])
def test_random_models(family: str, tmp_path: Path) -> None:
    model = load(families.build_checkpoint(family, tmp_path))
    for seed in range(2):
        ids = families.random_ids(6, 24 + 8 * seed)
        assert refutations(scan(model, tokens=ids, maps=0, eps=0.3)) == []


def test_domains() -> None:
    prose = "The king said that he would come, and the queen said that she would not. " * 3
    code = "for i in range(10):\n    print(i, i * i)\n" * 4
    texts = {"prose": [prose[i:] for i in range(6)], "code": [code[i:] for i in range(6)]}
    assert refutations(scan("tiny-llama", texts, max_tokens=40, maps=0)) == []
