"""The estimate that is said before a run: it grows with what is asked for, and the batch fits."""

from dataclasses import replace
from pathlib import Path

import pytest

from sinklens.capture import memory
from sinklens.capture.memory import GIB, MemoryPlan, Sizes, estimate, plan_memory
from tests.families import boot, checkpoint

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


# ------------------------------------------------------------------ GPUs
EIGHT_B = Sizes(
    d_model=4096, d_mlp=14336, heads=32, kv_heads=8, d_head=128, d_vocab=128256, weights=16_060_522_496, item=2,
    all_logits=False, path="fast", kernel="extra pass", on_gpu=True,
)  # fmt: skip


@pytest.mark.parametrize("kernel", ["extra pass", "blocks"])
def test_128k_tokens_of_an_8b_model_fit_a_card_of_80_gb(kernel: str) -> None:
    plan = estimate(replace(EIGHT_B, kernel=kernel), 1, 131072)
    assert plan.weights + plan.extra < 0.7 * 80e9
    # by hand: the MLP's three intermediate tensors alone, and at most a few numbers for every token and channel more
    mlp = 3 * 14336 * 2 * 131072
    assert mlp < plan.extra < 3 * mlp
    assert estimate(replace(EIGHT_B, kernel=kernel, all_logits=True), 1, 131072).extra > plan.extra + 33e9
    half = estimate(replace(EIGHT_B, kernel=kernel), 1, 65536)
    assert 1.9 < plan.extra / half.extra < 2.1  # nothing grows with the square


def test_batches_are_split_to_fit_a_gpu(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = boot("llama", zoo)
    on_gpu = replace(memory.sizes_of(bridge), on_gpu=True)
    monkeypatch.setattr(memory, "sizes_of", lambda model: on_gpu)
    monkeypatch.setattr(memory, "free_memory", lambda model: 9 * GIB // 10)
    wide = plan_memory(bridge, 64, 4096, 64)
    assert wide.asked == 64 and wide.batch_size in (8, 16, 32) and wide.extra <= 0.81 * GIB
    assert estimate(on_gpu, 2 * wide.batch_size, 4096).extra > 0.81 * GIB
    assert plan_memory(bridge, 64, 64, 4).asked is None
    said = str(replace(wide, where="cuda:0"))
    assert f"921.6 MiB of cuda:0 are free, so batches of 64 are split into {wide.batch_size}." in said
    monkeypatch.setattr(memory, "free_memory", lambda model: 1 << 20)
    assert "may not be enough" in str(replace(plan_memory(bridge, 1, 4096), where="cuda:0"))


@pytest.mark.cuda
def test_the_plan_knows_the_card(zoo: Path) -> None:
    import torch

    from sinklens import load

    model = load(checkpoint("llama", zoo), device="cuda")
    plan = plan_memory(model, 4, 64)
    assert plan.where.startswith("cuda") and plan.free is not None
    assert 0 < plan.free <= torch.cuda.mem_get_info()[1] and "are free" in str(plan)
