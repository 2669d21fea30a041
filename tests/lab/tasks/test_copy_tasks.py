"""Needles behind any word and repeated spans are what they say, at every length."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinklens.errors import InputError
from sinklens.lab.tasks import DistinctNeedle, RepeatedSpans
from sinklens.lab.tasks.word_task import after_repeat


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(value_len=st.integers(1, 5), extra=st.integers(0, 30), spare=st.integers(0, 9), seed=st.integers(0, 99))
def test_a_needle_stands_where_it_says_among_words_that_all_differ(
    value_len: int, extra: int, spare: int, seed: int
) -> None:
    length = 3 + 2 * value_len + extra
    task = DistinctNeedle(length - 2 - value_len + spare, value_len, length)
    ids, start = task.draw(5, generator=draw(seed))
    assert ids.shape == (5, length) and torch.equal(ids, task.sample(5, generator=draw(seed)))
    assert (task.bos_id, task.d_vocab) == (task.n_words, task.n_words + 1)
    for row, first in zip(ids.tolist(), start.tolist(), strict=True):
        asked = row[-1 - value_len :]
        haystack = row[1 : -1 - value_len]
        assert row[0] == task.n_words and len(set(haystack)) == len(haystack) and max(haystack) < task.n_words
        assert (
            first >= 2 and row[first - 1 : first + value_len] == asked and first + value_len <= length - 1 - value_len
        )
    certain = task.classes(ids)["copy"]
    assert certain[:, -value_len:].all() and certain.sum() == 5 * value_len
    assert torch.equal(task.classes(ids)["new"], ~certain)


def test_every_word_may_be_a_key_and_every_place_is_as_likely() -> None:
    task = DistinctNeedle(n_words=12, value_len=2, seq_len=13)
    ids, start = task.draw(6000, generator=draw())
    keys, places = ids[:, -3].bincount(minlength=12), start.bincount()
    assert torch.allclose(keys / 6000, torch.full((12,), 1 / 12), atol=0.02)
    # 9 words before the question leave 7 places for key and values
    assert places[:2].sum() == 0 and len(places) == 9
    assert torch.allclose(places[2:] / 6000, torch.full((7,), 1 / 7), atol=0.02)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(5, 60),
    most=st.integers(2, 5),
    offset=st.floats(0, 0.9),
    seed=st.integers(0, 99),
)
def test_spans_are_a_prefix_and_one_block_again_and_again(length: int, most: int, offset: float, seed: int) -> None:
    task = RepeatedSpans(60, (2, most), offset, length)
    ids = task.sample(5, generator=draw(seed))
    assert ids.shape == (5, length) and (ids[:, 0] == 60).all() and (ids[:, 1:] < 60).all()
    certain = task.classes(ids)["copy"]
    for row, copied in zip(ids.tolist(), certain.tolist(), strict=True):
        words = row[1:]
        second = next(i for i, word in enumerate(words) if word in words[:i])
        prefix = words.index(words[second])
        block = second - prefix
        assert prefix <= offset * len(words) + 1 and block >= 2
        assert all(words[i] == words[i - block] for i in range(second, len(words)))
        assert len(set(words[:second])) == second
        assert (len(words) - prefix) // block >= 2 and copied == [False] * (second + 1) + [True] * (length - 2 - second)


def test_blocks_of_a_given_number_leave_nothing_over() -> None:
    ids = RepeatedSpans(512, (4, 4), 0.0, 65).sample(3, generator=draw())[:, 1:].unflatten(1, (4, 16))
    assert (ids == ids[:, :1]).all()
    counts = {
        len(row) // len(set(row))
        for row in RepeatedSpans(512, (2, 4), 0.0, 49).sample(200, None, draw())[:, 1:].tolist()
    }
    assert counts == {2, 3, 4}


@pytest.mark.parametrize(
    ("task", "wrong", "said"),
    [
        (DistinctNeedle, {"value_len": 0}, "value_len must be at least 1"),
        (DistinctNeedle, {"seq_len": 18}, "fits 19 to 522 tokens, not 18"),
        (DistinctNeedle, {"seq_len": 523}, "not 523"),
        (RepeatedSpans, {"repeats": (1, 4)}, "at least twice"),
        (RepeatedSpans, {"repeats": (3, 2)}, "at least twice"),
        (RepeatedSpans, {"offset": 1.0}, "from 0 to below 1"),
        (RepeatedSpans, {"seq_len": 4}, "at least 5 tokens"),
        (RepeatedSpans, {"n_words": 20}, "need up to 37"),
    ],
)
def test_impossible_tasks_are_refused(task: Any, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        task(**wrong)


def test_another_length_is_refused_too() -> None:
    with pytest.raises(InputError, match="not 900"):
        DistinctNeedle().sample(1, 900)
    with pytest.raises(InputError, match="2000 tokens need"):
        RepeatedSpans().sample(1, 2000)


@given(ids=st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_a_token_comes_again_if_it_stands_earlier(ids: list[int]) -> None:
    assert after_repeat(torch.tensor([ids]))[0].tolist() == [token in ids[:place] for place, token in enumerate(ids)]
