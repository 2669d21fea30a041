"""Compiled looks at residual states against the same in torch."""

import math

import pytest
import torch

from sinklens.attention import compiled
from sinklens.capture import look
from sinklens.capture.look import along, column_sums, entries_above, summary

pytestmark = pytest.mark.skipif(not compiled.available(), reason="numba is not installed")


def states_of(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    batch, pos, width = {"odd": (1, 5, 7), "one": (2, 1, 3), "wide": (3, 150, 64)}.get(case, (4, 9, 16))
    states = torch.randn(batch, pos, width, generator=generator) * torch.rand(width, generator=generator) * 30
    real = torch.ones(batch, pos, dtype=torch.bool)
    if case == "padded":
        real[1, 4:], real[2] = False, False
        states[1, 6] = math.nan  # what stands in padding is nobody's business
    elif case == "nan":
        states[2, 3, 5] = math.nan
    elif case == "infinite":
        states[2, 3, 5] = -math.inf
    elif case == "ties":
        states = states.sign() * states.abs().clamp(5, 5.001)
    elif case == "zeros":
        states[0], states[1, :, ::2] = 0, -0.0
    elif case == "tiny":
        states *= 1e-42  # below what has a leading digit
    elif case == "half":
        states = states.bfloat16()
    elif case == "strided":
        states = states.transpose(1, 2).contiguous().transpose(1, 2)
    return states, real


@pytest.mark.parametrize(
    "case", ["plain", "odd", "one", "wide", "padded", "nan", "infinite", "ties", "zeros", "tiny", "half", "strided"]
)
def test_equals_torch(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states, real = states_of(case)
    chosen, direction = real & (torch.arange(real.shape[1]) % 3 > 0), states[:, 0]
    found = *summary(states, real), along(states, direction), column_sums(states, chosen)
    monkeypatch.setattr(compiled, "available", lambda: False)
    plain = *summary(states, real), along(states, direction), column_sums(states, chosen)
    assert torch.equal(found[1].nan_to_num(-1), plain[1].nan_to_num(-1))
    assert torch.equal(found[2].isnan(), plain[2].isnan()) and torch.equal(found[2].nan_to_num(), plain[2].nan_to_num())
    exact = states.double() @ direction.double()[..., None]
    scale = (states.double().abs() @ direction.double().abs()[..., None]).nan_to_num(posinf=0) + 1e-30
    close = ((found[3].double()[..., None] - exact) / scale).nan_to_num()
    assert close.abs().max() < 1e-5 or case == "tiny"
    torch.testing.assert_close(found[0], plain[0], rtol=1e-5, atol=1e-30, equal_nan=True)
    torch.testing.assert_close(found[4], plain[4], rtol=1e-5, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize(
    "case", ["plain", "odd", "one", "wide", "padded", "nan", "infinite", "ties", "zeros", "half", "strided"]
)
@pytest.mark.parametrize("compiles", [True, False])
def test_entries_above_a_bound_are_those_of_a_loop(case: str, compiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    states, real = states_of(case)
    _, largest, median = summary(states, real)
    bound = torch.where(torch.arange(len(states)) == 1, 5.0, 2 * median.nan_to_num(1))
    if not compiles:
        monkeypatch.setattr(compiled, "available", lambda: False)
    found = entries_above(states, largest, bound)
    expected = [
        (row, place, channel, value)
        for row, sequence in enumerate(states.tolist())
        for place, state in enumerate(sequence)
        for channel, value in enumerate(state)
        if real[row, place] and not any(math.isnan(v) for v in state) and abs(value) > bound[row]
    ]
    assert [tuple(entry) for entry in zip(*(each.tolist() for each in found), strict=True)] == expected
    assert expected or case in ("one", "zeros")


def test_gradients_go_through_torch() -> None:
    with torch.enable_grad():
        states = torch.randn(2, 4, 8, requires_grad=True)
        along(states, states[:, 0]).sum().backward()
    assert states.grad is not None and bool((states.grad != 0).all())


def test_threads_that_take_sequences_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    states, real = states_of("padded")
    alone = summary(states, real)
    monkeypatch.setattr(look, "WORTH_THREADS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    together = summary(states, real)
    torch.set_num_threads(before)
    for mine, other in zip(alone, together, strict=True):
        assert torch.equal(mine.nan_to_num(-1), other.nan_to_num(-1))
