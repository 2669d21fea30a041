"""Heads in threads: the same numbers, the first exception comes out, and torch's threads are as before."""

import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from sinklens.attention import (
    AttentionCall,
    Distance,
    Entropy,
    MissingMass,
    PooledMap,
    ReceivedMass,
    TopKey,
    kernel,
    workers,
)
from sinklens.attention.delta_logit import DeltaLogit
from sinklens.attention.kernel import attend
from sinklens.attention.workers import run_units


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("batch", "heads", "kv_heads", "length"), [(3, 1, 1, 70), (2, 6, 2, 150), (1, 5, 5, 300)])
def test_threads_change_nothing(
    batch: int, heads: int, kv_heads: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, heads, length, 8, generator=generator)
    key, value = (torch.randn(batch, kv_heads, length, 8, generator=generator) for _ in range(2))
    real = torch.ones(batch, length, dtype=torch.bool)
    real[-1, length - 20 :] = False
    call = AttentionCall(0, query, key, value, 0.5, real=real)
    factories = [ReceivedMass, Entropy, Distance, TopKey, MissingMass, DeltaLogit, PooledMap]
    outcomes = []
    for worth in (1 << 60, 1):
        monkeypatch.setattr(kernel, "WORTH_THREADS", worth)
        statistics = [make(call.shape) for make in factories]
        # blocks of few bytes give every head a unit of its own
        outcomes.append((attend(call, statistics, block_bytes=1 << 12), [s.compute() for s in statistics]))
    (alone, computed), (together, computed_together) = outcomes
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)
    for mine, other in zip(computed, computed_together, strict=True):
        for name, expected in mine.items():
            torch.testing.assert_close(other[name], expected, equal_nan=True, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("team", [True, False])
def test_units_run_side_by_side_and_threads_are_as_before(team: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not team:  # where torch has another kind of threads
        monkeypatch.setattr(workers, "_team", lambda: None)
    both = threading.Barrier(2, timeout=30)  # passes only if two units are under way at once
    seen: list[int] = []

    def work(unit: int) -> None:
        both.wait()
        assert not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        seen.append(unit)

    run_units(work, [0, 1, 2, 3], parallel=True)
    assert sorted(seen) == [0, 1, 2, 3] and torch.get_num_threads() == 2


def test_inference_mode_goes_along() -> None:
    seen: list[bool] = []
    with torch.inference_mode():
        run_units(lambda unit: seen.append(torch.is_inference_mode_enabled()), [0, 1, 2], parallel=True)
    assert seen == [True] * 3


@pytest.mark.parametrize("team", [True, False])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_comes_out_and_ends_the_rest(
    team: bool, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not team:
        monkeypatch.setattr(workers, "_team", lambda: None)
    begun: list[int] = []

    def work(unit: int) -> None:
        begun.append(unit)
        raise error(f"unit {unit}")

    with pytest.raises(error, match="unit"):
        run_units(work, [*range(100)], parallel=True)
    assert len(begun) <= 2 and torch.get_num_threads() == 2


def test_units_within_units_and_threads_of_the_caller_find_their_end() -> None:
    """A team within a team is one thread; every thread of Python has a team of its own."""
    seen: list[tuple[int, int]] = []

    def outer(unit: int) -> None:
        run_units(lambda inner: seen.append((unit, inner)), [0, 1, 2], parallel=True)

    callers = [threading.Thread(target=run_units, args=(outer, [0, 1, 2]), kwargs={"parallel": True}) for _ in "ab"]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert sorted(seen) == sorted([(unit, inner) for unit in range(3) for inner in range(3)] * 2)


@pytest.mark.skipif(sys.platform != "linux", reason="the wheels for Linux bring GNU's OpenMP")
def test_torch_has_a_team_that_can_be_asked() -> None:
    assert workers._team() is not None
