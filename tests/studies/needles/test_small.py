"""ROUGE-1, Wilson's interval, and what is read from the logits of answer rows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sinklens.errors import InputError
from sinklens.evidence.wilson import wilson_interval
from sinklens.studies.needles.answers import rouge1_recall, words
from sinklens.studies.needles.outcome import read_outcome


@given(st.integers(1, 60), st.data())
def test_wilson_is_scipys(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_refuses() -> None:
    assert all(math.isnan(end) for end in wilson_interval(0, 0))
    with pytest.raises(InputError, match="0 to n"):
        wilson_interval(3, 2)
    with pytest.raises(InputError, match="confidence"):
        wilson_interval(1, 2, 1.0)


def test_rouge_counts_each_unit_as_often_as_it_is_there() -> None:
    assert rouge1_recall(words("the cat and the dog"), words("The CAT the the")) == pytest.approx(3 / 5)
    assert rouge1_recall([1, 2, 3], []) == 0
    assert rouge1_recall([1, 1], [2, 1, 1]) == 1
    assert words("O'Neil's 2nd café_x") == ["o", "neil", "s", "2nd", "café", "x"]


def test_outcome_reads_every_step() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, -1.0]])
    found = read_outcome(logits, (1, 1))
    assert found.produced.tolist()[0] == 1 and found.rank.tolist() == [1, 1]  # nothing is above a tie
    expected = logits.double().log_softmax(-1)[[0, 1], [1, 1]]
    assert torch.allclose(found.log_prob.double(), expected)
    assert found.correct((1, 1)).tolist()[0]
