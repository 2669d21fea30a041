"""Compiled causal attention against dense fp64 attention, and against the kernel that shows every block."""

import math
import threading
from functools import partial

import pytest
import torch
from torch import Tensor

import sinklens
from sinklens.attention import (
    AttentionCall,
    Distance,
    Entropy,
    FullMap,
    KeySetMass,
    MissingMass,
    PooledMap,
    ReceivedMass,
    StatisticFactory,
    TopKey,
    causal,
    compiled,
    kernel,
)
from sinklens.attention.delta_logit import DeltaLogit
from sinklens.attention.kernel import attend
from tests.attention import dense
from tests.attention.test_kernel import random_call

pytestmark = pytest.mark.skipif(not compiled.available(), reason="numba is not installed")


def measured(call: AttentionCall, sets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Output and all statistics that the compiled way can give."""
    maps: StatisticFactory = partial(PooledMap, sequences=range(call.query.shape[0]))
    makers = [ReceivedMass, Entropy, Distance, TopKey, MissingMass, DeltaLogit, maps, partial(KeySetMass, sets=sets)]
    statistics = dense.make(makers, call.shape)
    output = attend(call, statistics)
    return dense.computed(statistics) | {"output": output}


def sets_of(batch: int, k_pos: int) -> dict[str, Tensor]:
    keys = torch.arange(k_pos).expand(batch, -1)
    some = torch.stack([(torch.arange(k_pos) + 2 * sequence) % 5 == 4 for sequence in range(batch)])
    return {"first": keys == 0, "some": some, "none": keys < 0}


@pytest.mark.parametrize("block_bytes", [None, 40_000])
@pytest.mark.parametrize(
    ("q_pos", "k_pos", "batch", "kv_heads"),
    [(2, 2, 3, 1), (64, 64, 5, 2), (129, 129, 2, 4), (300, 300, 1, 2), (40, 300, 2, 1)],
)
def test_equals_dense_attention(
    q_pos: int, k_pos: int, batch: int, kv_heads: int, block_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block_bytes is not None:
        monkeypatch.setattr(causal, "BYTES", block_bytes)
        monkeypatch.setattr(causal, "WORTH_THREADS", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(kernel, "_Job", None)  # the other way is not taken
    real = torch.ones(batch, q_pos, dtype=torch.bool)
    real[-1, q_pos - q_pos // 3 :] = False
    call, sets = random_call(q_pos, k_pos, batch, kv_heads, real=real), sets_of(batch, k_pos)
    visible = dense.causal(q_pos, k_pos, batch=batch) & real[..., None]
    found = measured(call, sets)
    scores = dense.scores(call)
    pattern = dense.pattern(scores, dense.causal(q_pos, k_pos))
    output = found.pop("output")
    torch.testing.assert_close(output.double(), dense.output(pattern, call.value), atol=2e-5, rtol=0)
    expected = dense.statistics(pattern, scores, visible, sets)
    for name in ("top_key", "full_map"):
        weights = expected.pop(name)
    chosen = found.pop("top_key")
    assert torch.equal(chosen == -1, ~real[:, None].expand_as(chosen))
    best = weights.gather(-1, chosen.clamp(min=0)[..., None])[..., 0].masked_fill(~real[:, None], math.nan)
    torch.testing.assert_close(best.float(), found["top_weight"], atol=1e-6, rtol=0, equal_nan=True)
    dense.assert_right(found, expected, visible, 5e-5)


@pytest.mark.parametrize(("batch", "length"), [(1, 600), (9, 40)])
def test_which_thread_is_first_changes_no_bit(batch: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "WORTH_THREADS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    call, sets = random_call(length, batch=batch), sets_of(batch, length)
    first = measured(call, sets)
    for _ in range(5):
        torch.testing.assert_close(measured(call, sets), first, equal_nan=True, atol=0, rtol=0)


def test_half_precision_is_computed_in_fp32() -> None:
    call = random_call(70)
    half = {name: getattr(call, name).bfloat16() for name in ("query", "key", "value")}
    exact = {name: value.float() for name, value in half.items()}
    sets = sets_of(2, 70)
    low = measured(AttentionCall(0, **half, scaling=call.scaling), sets)
    high = measured(AttentionCall(0, **exact, scaling=call.scaling), sets)
    assert low["output"].dtype == torch.bfloat16
    torch.testing.assert_close(low.pop("output").float(), high.pop("output"), atol=0.01, rtol=0.01)
    torch.testing.assert_close(low, high, equal_nan=True, atol=0, rtol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_what_is_not_finite_stays_so(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, infinities and products that overflow end where they do without compilation, and nowhere else."""
    call, sets = random_call(20, batch=2), sets_of(2, 20)
    call.query[1, 2, 7] = bad
    call.key[1, 1, 3] = abs(bad)
    mine = measured(call, sets)
    monkeypatch.setattr(compiled, "available", lambda: False)
    other = measured(call, sets)
    seen = slice(0, 8)  # torch's softmax makes NaN of keys after the row's own, too
    for name in ("mass", "entropy", "distance", "output", "mass_some", "delta_logit"):
        assert torch.equal(mine[name][:, :, seen].isfinite(), other[name][:, :, seen].isfinite()), name
        assert not mine[name][1, 2].isfinite().all(), name
        assert mine[name][0].isfinite().all() or name == "delta_logit", name


def test_rows_of_one_key_and_of_far_smaller_ones() -> None:
    """Weights below what fp32 holds are 0, and a row with one key gives it everything."""
    call = random_call(6, batch=1)
    call.key[0, :, 2] = 0
    call.key[0, :, 2, 0], call.query[..., 0] = 400.0, 10.0
    found = measured(call, {})
    assert torch.equal(found["entropy"][0, :, 0], torch.zeros(4))
    assert torch.equal(found["entropy"][0, :, 2:], torch.zeros(4, 4))
    assert torch.equal(found["mass"][0, :, 2], torch.full((4,), 4.0))


def test_the_first_of_equal_weights_is_the_strongest() -> None:
    call = random_call(150, batch=1)
    call.key[:] = call.key[:, :, :1]
    statistic = TopKey(call.shape)
    attend(call, [statistic])
    assert torch.equal(statistic.compute()["top_key"], torch.zeros(1, 4, 150, dtype=torch.int64))
    call.key[:, :, 100] = 9 * call.query[:, :2, 140]
    statistic = TopKey(call.shape)
    attend(call, [statistic])
    assert statistic.compute()["top_key"][0, 0, 140] == 100


def test_other_statistics_are_shown_blocks() -> None:
    call = random_call(50)
    assert causal.fits(call, [Entropy(call.shape)], [])
    assert not causal.fits(call, [Entropy(call.shape), FullMap(call.shape)], [])
    assert not causal.fits(call, [Entropy(call.shape)], [object()])
    for change in ({"soft_cap": 2.0}, {"causal": False}, {"sink_logits": torch.zeros(4)}, {"bias": torch.zeros(1)}):
        assert not causal.fits(random_call(50, **change), [Entropy(call.shape)], [])


def test_what_is_measured_may_be_kept_from_saying_how() -> None:
    """An output that is compared with that of an edited call is the same, measured or not."""
    call = random_call(300, batch=2)
    assert not causal.fits(call, [], [])
    plain = attend(call)
    assert torch.equal(attend(call, [ReceivedMass(call.shape)], compiled=False), plain)
    assert not torch.equal(attend(call, [ReceivedMass(call.shape)]), plain), "then compiled=False says nothing"


def test_a_scan_with_its_defaults_takes_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """One detector whose statistic is not made of sums would make every scan slower, in silence."""
    monkeypatch.setattr(kernel, "_Job", None)
    assert not sinklens.scan("bb-1l", max_sequences=2, max_tokens=32).tables["heads"].empty


def test_callers_in_threads_share_buffers_and_get_their_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "WORTH_THREADS", 1)
    monkeypatch.setattr(causal, "BYTES", 20_000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    calls = [random_call(length, batch=1) for length in (60, 90, 120, 150)]
    expected = [measured(call, sets_of(1, call.key.shape[2])) for call in calls]
    wrong: list[str] = []

    def again(which: int) -> None:
        for _ in range(15):
            found = measured(calls[which], sets_of(1, calls[which].key.shape[2]))
            wrong.extend(
                name
                for name, value in expected[which].items()
                if not torch.equal(found[name].nan_to_num(), value.nan_to_num())
            )

    threads = [threading.Thread(target=again, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong and not any(thread.is_alive() for thread in threads)
    causal.forget_buffers()
    assert torch.equal(measured(calls[0], sets_of(1, 60))["output"], expected[0]["output"])
