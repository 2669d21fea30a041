"""Importance and sink rate as Gu et al. (2025) define them: floors, planted sinks, order of averaging."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinklens.detectors.sinks import (
    EPS,
    MIN_QUERIES,
    importance,
    shortest_length,
    sink_rate,
    uniform_importance,
)
from sinklens.errors import InputError
from tests.detectors.records import random_pattern, visible


def uniform(length: int) -> torch.Tensor:
    """Every query attends evenly to itself and what came before, ``[1 q_pos k_pos]``."""
    seen = visible(length).double()
    return (seen / seen.sum(-1, keepdim=True))[None]


def planted(length: int, share: float, key: int = 0) -> torch.Tensor:
    """Queries after ``key`` give it this share and keep the rest for themselves."""
    pattern = torch.eye(length, dtype=torch.float64)
    pattern[key + 1 :] *= 1 - share
    pattern[key + 1 :, key] += share
    return pattern[None]


def harmonic(n: int) -> float:
    return sum(1 / i for i in range(1, n + 1))


# ------------------------------------------------------------------ the floor
def test_uniform_attention_gives_the_first_key_the_harmonic_floor() -> None:
    assert importance(uniform(64))[0, 0] == pytest.approx(0.07412, abs=5e-6)
    assert importance(uniform(9))[0, 0] == pytest.approx(0.3143, abs=5e-5)
    assert importance(uniform(10))[0, 0] == pytest.approx(0.2929, abs=5e-5)


@pytest.mark.parametrize("length", [1, 2, 9, 10, 64, 129])
def test_uniform_importance_of_every_key(length: int) -> None:
    # counted from 0: (H_T - H_k) / (T - k)
    expected = [(harmonic(length) - harmonic(k)) / (length - k) for k in range(length)]
    torch.testing.assert_close(uniform_importance(length).double(), torch.tensor(expected).double())
    torch.testing.assert_close(importance(uniform(length))[0], torch.tensor(expected).double())


@pytest.mark.parametrize("length", range(2, 16))
def test_uniform_attention_is_no_sink_from_ten_tokens_on(length: int) -> None:
    alpha = importance(uniform(length))
    if length >= 10:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert sink_rate(alpha)[0, 0] == 0
    else:
        with pytest.warns(UserWarning, match=f"With {length} tokens .* use at least 10 tokens"):
            assert sink_rate(alpha)[0, 0] == 1


@pytest.mark.parametrize(("eps", "expected"), [(0.2, 18), (0.3, 10), (0.4, 7), (0.5, 5), (0.75, 2)])
def test_shortest_length_is_where_the_floor_drops_to_the_threshold(eps: float, expected: int) -> None:
    need = shortest_length(eps)
    assert need == expected
    assert harmonic(need) / need <= eps < harmonic(need - 1) / (need - 1)


def test_the_warning_begins_where_the_floor_passes_the_threshold() -> None:
    alpha = importance(uniform(9))  # 0.3143
    with pytest.warns(UserWarning, match="use at least 10 tokens"):
        sink_rate(alpha, 0.314)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sink_rate(alpha, 0.315)[0, 0] == 0


# ------------------------------------------------------------------ planted sinks
def test_planted_share_on_both_sides_of_the_threshold() -> None:
    length = 64
    for share in (0.0, 0.2888, 0.2890, 1.0):
        alpha = importance(planted(length, share))[0, 0]
        assert alpha == pytest.approx((1 + (length - 1) * share) / length)
    assert sink_rate(importance(planted(length, 0.2888)))[0, 0] == 0
    assert sink_rate(importance(planted(length, 0.2890)))[0, 0] == 1


def test_the_threshold_is_strict() -> None:
    alpha = torch.zeros(3, 1, 16)
    alpha[:, 0, 0] = torch.tensor([0.5, math.nextafter(0.5, 1), math.nextafter(0.5, 0)], dtype=torch.float64)
    exact = torch.tensor([[[0.5] + [0.0] * 15]])
    assert sink_rate(exact, 0.5)[0, 0] == 0
    assert sink_rate(exact + 1e-6, 0.5)[0, 0] == 1
    double = torch.zeros(3, 1, 16, dtype=torch.float64)
    double[:, 0, 0] = torch.tensor([0.5, math.nextafter(0.5, 1), math.nextafter(0.5, 0)], dtype=torch.float64)
    assert sink_rate(double, 0.5)[0, 0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("key", [0, 1, 7, 40])
def test_a_sink_is_found_wherever_it_is(key: int) -> None:
    length = 64
    alpha = importance(planted(length, 0.9, key))[0]
    assert alpha[key] == pytest.approx((1 + (length - key - 1) * 0.9) / (length - key))
    # keys seen by few queries have large importance by themselves (each attends to itself here)
    assert int(alpha[: length - MIN_QUERIES].argmax()) == key


# ------------------------------------------------------------------ averaging
def test_the_indicator_is_taken_per_sequence_and_then_averaged() -> None:
    # mean importance 0.35 exceeds 0.3, but only one of two sequences does
    alpha = torch.zeros(2, 1, 64)
    alpha[0, 0, 0], alpha[1, 0, 0] = 0.2, 0.5
    assert alpha.mean(0)[0, 0] > EPS
    assert sink_rate(alpha)[0, 0] == 0.5


def test_all_leading_axes_count_as_sequences_and_heads_stay_apart() -> None:
    alpha = torch.zeros(2, 3, 4, 32)  # two batches of three sequences, four heads
    alpha[0, 1, 2, 5] = 0.9
    rate = sink_rate(alpha)
    assert rate.shape == (4, 32)
    assert rate[2, 5] == pytest.approx(1 / 6)
    assert rate.sum() == pytest.approx(1 / 6)
    assert sink_rate(alpha[0, 1])[2, 5] == 1  # no leading axis: one sequence


def test_keys_that_a_sequence_does_not_reach_are_left_out() -> None:
    alpha = torch.tensor([[[0.5] * 20], [[0.5] * 10 + [math.nan] * 10]])
    alpha[0, 0, 12:] = 0.1
    rate = sink_rate(alpha)[0]
    assert rate[:12].tolist() == [1] * 12 and rate[12:].tolist() == [0] * 8
    assert sink_rate(alpha[1:])[0, 10:].isnan().all()  # not applicable, not 0


# ------------------------------------------------------------------ input
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_importance_keeps_leading_axes(leading: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    count = math.prod(leading)
    patterns = torch.stack([random_pattern(12, generator) for _ in range(count)])
    alpha = importance(patterns.reshape(*leading, 4, 12, 12))
    assert alpha.shape == (*leading, 4, 12)
    torch.testing.assert_close(alpha.reshape(-1, 4, 12), torch.stack([importance(pattern) for pattern in patterns]))


def test_tensors_arrays_and_lists_give_the_same() -> None:
    pattern = random_pattern(12, torch.Generator().manual_seed(0))
    expected = importance(pattern)
    assert expected.dtype == torch.float64
    for same in (pattern.numpy(), pattern.numpy()[None]):
        assert torch.equal(importance(same).reshape(4, 12), expected)
    for narrow in (
        pattern.float(),
        pattern.float().numpy(),
        pattern.tolist(),
        pattern.half(),
        pattern.bfloat16(),
    ):
        alpha = importance(narrow)
        assert alpha.dtype == torch.float32
        torch.testing.assert_close(alpha.double(), expected, atol=5e-3, rtol=0)
    rate = sink_rate(expected)
    for same in (expected.numpy(), expected.tolist()):
        assert torch.equal(sink_rate(same), rate)
    assert importance(np.ones((1, 1, 1), dtype=int)).item() == 1


def test_importance_sums_half_precision_in_fp32() -> None:
    # in bf16 a running sum of small shares stops growing
    pattern = torch.zeros(1, 4096, 4096, dtype=torch.bfloat16)
    pattern[0, :, 0] = 0.25
    assert importance(pattern)[0, 0] == pytest.approx(0.25)


@pytest.mark.parametrize(
    "bad", [torch.ones(3), torch.ones(2, 3, 4), torch.ones(1, 0, 0), torch.tensor(1.0), [[[0.5, 0.5]]]]
)
def test_patterns_that_are_not_square_are_refused(bad: object) -> None:
    with pytest.raises(InputError, match=r"Expected square patterns \[..., head, q_pos, k_pos\], got shape"):
        importance(bad)


def test_nan_in_a_pattern_is_refused() -> None:
    pattern = uniform(12)
    pattern[0, 0, 5] = math.nan
    with pytest.raises(InputError, match="holds NaN"):
        importance(pattern)


def test_bad_importance_and_thresholds_are_refused() -> None:
    with pytest.raises(InputError, match="Expected importance"):
        sink_rate(torch.ones(16))
    with pytest.raises(InputError, match="Expected importance"):
        sink_rate(torch.ones(2, 0))
    for eps in (0, 1, -0.1, 1.5, math.nan):
        with pytest.raises(InputError, match="eps must lie between 0 and 1"):
            sink_rate(torch.zeros(1, 16), eps)
        with pytest.raises(InputError, match="eps must lie between 0 and 1"):
            shortest_length(eps)


# ------------------------------------------------------------------ invariants
@given(length=st.integers(1, 24), seed=st.integers(0, 100))
def test_importance_of_a_causal_softmax_is_bounded(length: int, seed: int) -> None:
    pattern = random_pattern(length, torch.Generator().manual_seed(seed))
    alpha = importance(pattern)
    assert alpha.min() >= 0 and alpha.max() <= 1 + 1e-12
    assert alpha[:, 0].min() >= 1 / length - 1e-12
    queries = length - torch.arange(length)
    torch.testing.assert_close((alpha * queries).sum(-1), torch.full((4,), length).double())  # all mass is somewhere


@given(seed=st.integers(0, 100))
def test_heads_can_be_permuted(seed: int) -> None:
    pattern = random_pattern(15, torch.Generator().manual_seed(seed))
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(importance(pattern[order]), importance(pattern)[order])
    assert torch.equal(sink_rate(importance(pattern[order])), sink_rate(importance(pattern))[order])


def test_mass_on_a_learned_sink_is_not_renormalised() -> None:
    generator = torch.Generator().manual_seed(0)
    short = random_pattern(20, generator, missing=True)
    whole = short / short.sum(-1, keepdim=True)
    assert (importance(short) < importance(whole)).all()
    queries = 20 - torch.arange(20)
    missing = (1 - short.sum(-1)).sum(-1)
    torch.testing.assert_close((importance(short) * queries).sum(-1) + missing, torch.full((4,), 20.0).double())
