"""Retrieval scores: constructed traces with known answers, a naive oracle, and the detector's bookkeeping."""

import math
import random

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinklens.detectors.retrieval import (
    METRICS,
    CopyScores,
    RetrievalDetector,
    copied,
    copy_scores,
    event_score,
    set_score,
    similarity,
    uniform_score,
)
from sinklens.detectors.retrieval_bands import band
from sinklens.errors import InputError

IDS = torch.tensor([9, 1, 2, 3, 4, 9, 2])
SPAN = (1, 5)


def naive(top_key: list[int], produced: list[int], ids: list[int], span: tuple[int, int]) -> tuple[float, float, float]:
    """Event form, set form and null in the plainest code, after the card's formulas."""
    start, stop = span
    events, found, null = 0, set(), 0.0
    for step, (key, token) in enumerate(zip(top_key, produced, strict=True)):
        if start <= key < stop and ids[key] == token:
            events += 1
            found.add(token)
        null += sum(ids[j] == token for j in range(start, stop)) / (len(ids) + step)
    needle = set(ids[start:stop])
    return events / (stop - start), len(found & needle) / len(needle), null / (stop - start)


@given(st.integers(0, 10**6))
def test_scores_equal_the_naive_ones(seed: int) -> None:
    draw = random.Random(seed)
    n, steps, heads = draw.randint(3, 12), draw.randint(1, 9), draw.randint(1, 3)
    ids = [draw.randrange(5) for _ in range(n)]
    start = draw.randrange(n - 1)
    span = (start, draw.randint(start + 1, n))
    produced = [draw.randrange(5) for _ in range(steps)]
    top = [[[draw.randrange(-1, n + step) for step in range(steps)] for _ in range(heads)]]
    scores = copy_scores(torch.tensor(top), torch.tensor(produced), torch.tensor(ids), span)
    for head in range(heads):
        event, unique, null = naive(top[0][head], produced, ids, span)
        assert scores.event[0, head].item() == pytest.approx(event)
        assert scores.set[0, head].item() == pytest.approx(unique)
        assert scores.null == pytest.approx(null)
        assert scores.set[0, head] <= 1


def test_on_one_trace_the_event_form_exceeds_one_and_the_set_form_does_not() -> None:
    # the model goes on answering: 1 2 3 4 and then 1 2 again, all copied
    produced = torch.tensor([1, 2, 3, 4, 1, 2])
    copies = copied(torch.tensor([1, 2, 3, 4, 1, 2]), produced, IDS, SPAN)
    assert copies.all()
    assert event_score(copies, SPAN).item() == 1.5
    assert set_score(copies, produced, IDS, SPAN).item() == 1.0


@pytest.mark.parametrize(
    ("key", "token", "copies"),
    [
        (2, 2, True),
        (2, 3, False),  # attends to the span but produces something else
        (6, 2, False),  # the same token outside of the span
        (0, 9, False),  # just before it
        (5, 9, False),  # just after it
        (-1, 4, False),  # a row without any weight
        (8, 4, False),  # a token that the model produced itself
    ],
)
def test_what_counts_as_copying(key: int, token: int, copies: bool) -> None:
    assert copied(torch.tensor([key]), torch.tensor([token]), IDS, SPAN).tolist() == [copies]


def test_set_form_counts_token_ids_and_event_form_positions() -> None:
    ids, span = torch.tensor([7, 7, 8, 0]), (0, 3)
    produced = torch.tensor([7, 7, 8])
    copies = copied(torch.tensor([0, 1, 0]), produced, ids, span)
    assert event_score(copies, span).item() == pytest.approx(2 / 3)
    assert set_score(copies, produced, ids, span).item() == 0.5


def test_the_null_is_what_random_keys_score() -> None:
    generator = torch.Generator().manual_seed(0)
    produced, steps = torch.tensor([1, 2, 3, 4]), 4
    visible = torch.arange(steps) + len(IDS)
    drawn = (torch.rand(40000, steps, generator=generator) * visible).long()
    mean = event_score(copied(drawn, produced, IDS, SPAN), SPAN).mean().item()
    assert mean == pytest.approx(uniform_score(produced, IDS, SPAN, visible), abs=0.005)


def test_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(InputError, match=r"\[\.\. step\]"):
        copied(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, dtype=torch.long), IDS, SPAN)
    for span in ((3, 3), (-1, 2), (2, 99)):
        with pytest.raises(InputError, match="does not lie in a prompt"):
            copied(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), IDS, span)


def scores_of(seed: int, layers: int = 2, heads: int = 3) -> CopyScores:
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, heads)
    event = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) > 0.4)
    return CopyScores(event, event.clamp(max=0.7), 0.01 * seed)


def test_filter_discards_instances_and_does_not_count_them_as_zero() -> None:
    detector = RetrievalDetector([])
    kept, lost = scores_of(1), scores_of(2)
    detector.add([0, 2], kept, True)
    detector.add([0, 2], lost, False)
    frame = detector.tables()["retrieval"]
    assert frame["layer"].tolist() == [0, 0, 0, 2, 2, 2]
    assert torch.allclose(torch.tensor(frame["retrieval"].to_numpy()), kept.set.double().flatten())
    assert torch.allclose(torch.tensor(frame["retrieval_event"].to_numpy()), kept.event.double().flatten())
    both = (kept.set.double() + lost.set.double()).flatten() / 2
    assert torch.allclose(torch.tensor(frame["retrieval_unfiltered"].to_numpy()), both)
    assert set(frame["n_kept"]) == {1} and set(frame["n_instances"]) == {2}
    assert frame["activation_frequency"].tolist() == (kept.event > 0).double().flatten().tolist()
    assert frame["retrieval_null"].iloc[0] == pytest.approx(0.01)
    assert frame["retrieval_sd"].isna().all()  # one instance has no spread


def test_nothing_answered_is_not_applicable() -> None:
    detector = RetrievalDetector([])
    assert len(detector.tables()["retrieval"]) == 0
    detector.add([0, 1], scores_of(3), False)
    frame = detector.tables()["retrieval"]
    filtered = frame[["retrieval", "retrieval_event", "retrieval_null", "activation_frequency", "retrieval_band"]]
    assert filtered.isna().all().all()
    assert frame["retrieval_unfiltered"].notna().all()


@given(st.lists(st.booleans(), min_size=2, max_size=8), st.integers(1, 7))
def test_merging_and_order_change_nothing(successes: list[bool], cut: int) -> None:
    parts = [RetrievalDetector([]), RetrievalDetector([])]
    whole = RetrievalDetector([])
    for number, success in enumerate(successes):
        parts[number >= cut].add([0, 1], scores_of(number), success)
    for number, success in reversed(list(enumerate(successes))):
        whole.add([0, 1], scores_of(number), success)
    parts[0].merge(parts[1])
    pd.testing.assert_frame_equal(parts[0].tables()["retrieval"], whole.tables()["retrieval"])


def test_standard_deviation_and_frequency_over_instances() -> None:
    detector = RetrievalDetector([])
    for value in (0.0, 0.5, 1.0):
        detector.add([0], CopyScores(torch.tensor([[value]]), torch.tensor([[value]]), 0.0), True)
    row = detector.tables()["retrieval"].iloc[0]
    assert (row["retrieval"], row["retrieval_sd"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert row["activation_frequency"] == pytest.approx(2 / 3)


def test_detectors_of_other_models_are_refused() -> None:
    with pytest.raises(InputError, match="2 layers"):
        RetrievalDetector([]).add([0, 1], scores_of(0, layers=3), True)
    one, other = RetrievalDetector([]), RetrievalDetector([])
    one.add([0, 1], scores_of(0), True)
    other.add([0, 2], scores_of(0), True)
    with pytest.raises(InputError, match="cannot be merged"):
        one.merge(other)


def test_bands_have_the_papers_edges() -> None:
    assert [band(x) for x in (0.0, 1e-9, 0.0999, 0.1, 0.4999, 0.5, 1.7)] == [
        "0", "0-0.1", "0-0.1", "0.1-0.5", "0.1-0.5", ">=0.5", ">=0.5",
    ]  # fmt: skip


def heads(values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1], "retrieval": values})


def test_similarity_is_pearson_over_heads_in_any_order() -> None:
    left, right = heads([0.0, 0.1, 0.2, 0.9]), heads([0.1, 0.0, 0.3, 0.7])
    expected = left["retrieval"].corr(right["retrieval"])
    assert similarity(left, right) == pytest.approx(expected)
    assert similarity(left, right.sample(frac=1, random_state=1)) == pytest.approx(expected)
    assert math.isnan(similarity(left, heads([0.1] * 4)))
    assert math.isnan(similarity(left, heads([0.1, math.nan, 0.2, 0.3])))
    with pytest.raises(InputError, match="the same heads"):
        similarity(left, right.head(3))
    with pytest.raises(InputError, match="need the columns"):
        similarity(left, right.drop(columns="retrieval"))


def test_definitions_name_their_columns() -> None:
    detector = RetrievalDetector([])
    detector.add([0], scores_of(0, layers=1), True)
    assert {metric.name for metric in METRICS} <= set(detector.tables()["retrieval"].columns)
    assert all(metric.version == 1 and "2404.15574" in metric.source for metric in METRICS)
