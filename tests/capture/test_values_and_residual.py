"""Norms, medians and largest entries against loops and against whole matrix products."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinklens.capture.residual import residual_norms
from sinklens.capture.values import output_factor, value_norms


def draw(seed: int, *size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------ values
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (6, 3)])
@pytest.mark.parametrize(("d_value", "d_model"), [(8, 32), (32, 8), (5, 5), (1, 3)])
def test_norms_before_and_after_the_output_projection(heads: int, kv_heads: int, d_value: int, d_model: int) -> None:
    value, weights = draw(0, 2, kv_heads, 7, d_value), draw(1, heads, d_value, d_model)
    found = value_norms(value, output_factor(weights))
    assert found.output is not None
    for head in range(heads):
        v = value[:, head * kv_heads // heads].double()
        torch.testing.assert_close(
            found.output[:, head].double(), (v @ weights[head].double()).norm(dim=-1), atol=1e-5, rtol=1e-5
        )
    torch.testing.assert_close(found.value.double(), value.double().norm(dim=-1), atol=1e-6, rtol=1e-6)


def test_values_of_one_direction_may_vanish() -> None:
    weights = torch.zeros(1, 3, 4)
    weights[0, 0, 2] = 2.0  # only the first entry of v is written
    found = value_norms(torch.tensor([[[[1.0, 5.0, 5.0], [0.0, 7.0, 7.0]]]]), output_factor(weights))
    assert found.output is not None
    torch.testing.assert_close(found.output[0, 0], torch.tensor([2.0, 0.0]))


@pytest.mark.parametrize("factor", [None, draw(0, 4, 5, 5), draw(0, 3, 8, 8)])
def test_norms_after_the_output_projection_need_weights_that_fit(factor: Tensor | None) -> None:
    found = value_norms(draw(1, 2, 2, 7, 8), factor)
    assert found.output is None
    assert found.value.shape == (2, 2, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_values_do_not_overflow(dtype: torch.dtype) -> None:
    value = torch.full((1, 1, 2, 64), 3e4, dtype=dtype)
    norms = value_norms(value, output_factor(torch.eye(64, dtype=dtype)[None]))
    assert norms.output is not None
    torch.testing.assert_close(norms.value, norms.output[:, :1])
    assert norms.value.isfinite().all()


# ------------------------------------------------------------------ residual stream
def naive(hidden: list[list[float]], k: int) -> tuple[float, list[tuple[float, int, int]]]:
    """Median magnitude (lower middle) and the k largest entries as (value, position, channel)."""
    entries = [(x, t, c) for t, row in enumerate(hidden) for c, x in enumerate(row)]
    magnitudes = sorted(abs(x) for x, _, _ in entries)
    largest = sorted(entries, key=lambda entry: -abs(entry[0]))[:k]
    return magnitudes[(len(magnitudes) - 1) // 2], largest


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    d_model=st.integers(1, 7),
    k=st.integers(1, 9),
)
def test_residual_norms_equal_loops(seed: int, lengths: list[int], d_model: int, k: int) -> None:
    width = max(lengths)
    hidden = draw(seed, len(lengths), width, d_model)
    real = torch.arange(width) < torch.tensor(lengths)[:, None]
    hidden[~real] = 1e6  # padding must not reach any number
    found = residual_norms(hidden, real, k)
    for b, length in enumerate(lengths):
        rows = hidden[b, :length].tolist()
        median, largest = naive(rows, k)
        assert found.median[b].item() == pytest.approx(median)
        for t, row in enumerate(rows):
            assert found.norm[b, t].item() == pytest.approx(math.sqrt(sum(x * x for x in row)), rel=1e-5)
            assert found.token_max[b, t].item() == pytest.approx(max(abs(x) for x in row))
        assert found.norm[b, length:].isnan().all() and found.token_max[b, length:].isnan().all()
        for slot, (x, t, c) in enumerate(largest):
            assert found.top_value[b, slot].item() == pytest.approx(x)
            assert (found.top_position[b, slot].item(), found.top_channel[b, slot].item()) == (t, c)
        assert found.top_value[b, len(largest) :].isnan().all()
        assert (found.top_position[b, len(largest) :] == -1).all()
        assert (found.top_channel[b, len(largest) :] == -1).all()


def test_a_sequence_of_padding_only_has_no_numbers() -> None:
    real = torch.tensor([[True, True], [False, False]])
    found = residual_norms(draw(0, 2, 2, 3), real, k=2)
    assert found.norm[1].isnan().all() and found.token_max[1].isnan().all()
    assert found.median[1].isnan()
    assert found.top_value[1].isnan().all()
    assert (found.top_position[1] == -1).all() and (found.top_channel[1] == -1).all()
    assert found.top_value[0].isfinite().all()


def test_half_precision_norms_do_not_overflow() -> None:
    hidden = torch.full((1, 2, 64), 6e4, dtype=torch.float16)
    found = residual_norms(hidden, torch.ones(1, 2, dtype=torch.bool))
    assert found.norm.dtype == torch.float32
    torch.testing.assert_close(found.norm, hidden.float().norm(dim=-1))


def test_nan_is_not_hidden() -> None:
    hidden = draw(0, 1, 3, 4)
    hidden[0, 1, 2] = math.nan
    found = residual_norms(hidden, torch.ones(1, 3, dtype=torch.bool), k=1)
    assert found.norm[0].isnan().tolist() == [False, True, False]
    assert found.median.isnan().all() and found.top_value.isnan().all()
