"""The estimate that is said before a run: it grows with what is asked for, and the batch fits."""

from pathlib import Path

import pytest

from sinklens.capture import memory
from sinklens.capture.memory import MemoryPlan, plan_memory
from tests.families import boot

pytestmark = pytest.mark.filterwarnings("ignore:.*measured through the bridge's hooks")


def test_a_plan_says_what_it_counts() -> None:
    plan = MemoryPlan(2, 100, weights=3 << 30, activations=5 << 20, statistics=2048, pattern=0)
    assert plan.extra == (5 << 20) + 2048
    assert "3.0 GiB" in str(plan) and "5.0 MiB" in str(plan) and "2 KiB" in str(plan)
    assert "no T x T tensor" in str(plan)
    assert "T x T pattern" in str(MemoryPlan(2, 100, 0, 0, 0, pattern=1 << 20))


def test_only_the_fallback_counts_a_whole_pattern(zoo: Path) -> None:
    assert plan_memory(boot("llama", zoo), 4, 64).pattern == 0
    short, long = (plan_memory(boot("bloom", zoo), 4, length, 4).pattern for length in (32, 64))
    assert long == 4 * short > 0


def test_longer_texts_and_larger_batches_need_more(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    small, long, wide = (plan_memory(bridge, 8, pos, n).extra for pos, n in ((64, 2), (128, 2), (64, 4)))
    assert small < long
    assert small < wide


@pytest.mark.parametrize("n_sequences", [1, 3, 8, 100])
def test_the_batch_is_no_larger_than_needed(n_sequences: int, zoo: Path) -> None:
    chosen = plan_memory(boot("llama", zoo), n_sequences, 64)
    assert chosen.batch_size == min(n_sequences, 32)
    assert plan_memory(boot("llama", zoo), n_sequences, 64, 5).batch_size == 5


def test_the_batch_fits(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = boot("llama", zoo)
    assert plan_memory(bridge, 100, 1000).batch_size * 1000 <= 16384
    monkeypatch.setattr(memory, "free_memory", lambda model: 0)
    assert plan_memory(bridge, 100, 64).batch_size == 1  # and then it is tried one by one
