"""The GPU's extra pass against dense fp64 attention and against the block kernel.

Runs on a GPU, or in Triton's interpreter: ``test_triton.py`` starts a process for that.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens import load, scan
from sinklens.attention import (
    AttentionCall,
    AttentionEngine,
    FullMap,
    KeySetMass,
    PooledMap,
    ReceivedMass,
    plan,
    plan_for,
)
from sinklens.attention.extra_pass import attend_with_pass, form_for, usable
from sinklens.attention.kernel import attend
from sinklens.interventions import AblateHeads, MaskKeys, ScaleKeys, SlidingWindow
from sinklens.interventions.positions import Positions
from tests import families
from tests.attention import dense
from tests.attention.test_families import FAST, expected, reference
from tests.attention.test_kernel import random_call, sliding, to

# runs on a real GPU with the other tests marked cuda
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ["cpu"] if INTERPRETED else ["cuda"]
pytestmark = [
    pytest.mark.skipif(
        not INTERPRETED and bool(usable(torch.device("cuda" if torch.cuda.is_available() else "cpu"))),
        reason="the kernels run on a GPU, or in the interpreter that test_triton.py starts",
    ),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:overflow encountered"),
    *([] if INTERPRETED else [pytest.mark.cuda]),
]
OUTPUT, STATISTICS = 2e-5, 2e-5
ON_GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def makers(batch: int, k_pos: int, device: Any = "cpu") -> list[Any]:
    positions = torch.arange(k_pos, device=device).expand(batch, -1)
    sets = {"first": positions == 0, "even": positions % 2 == 0}
    return [maker for maker in dense.factories(batch, sets) if maker is not FullMap]


def passed(call: AttentionCall, edits: Any = ()) -> tuple[Tensor, dict[str, Tensor]]:
    statistics = dense.make(makers(call.shape.batch, call.shape.k_pos, call.shape.device), call.shape)
    form = form_for(call, statistics, edits)
    assert not isinstance(form, str), form
    return attend_with_pass(call, form, statistics), dense.computed(statistics)


def check(call: AttentionCall, visible: Tensor, limit: float = STATISTICS, device: str = "cpu") -> dict[str, Tensor]:
    batch, k_pos = call.query.shape[0], call.key.shape[2]
    positions = torch.arange(k_pos).expand(batch, -1)
    visible = visible.expand(batch, -1, -1)
    found, computed = passed(to(call, torch.device(device)))
    scores = dense.scores(call)
    pattern = dense.pattern(scores, visible, call.sink_logits)
    real = visible.any(-1)[:, None, :, None]
    gap = (found.cpu().double() - dense.output(pattern, call.value)).abs().masked_fill(~real, 0).max()
    assert found.dtype == call.value.dtype
    assert float(gap) < (OUTPUT if found.dtype == torch.float32 else 6 * torch.finfo(found.dtype).eps)
    right = dense.statistics(pattern, scores, visible, {"first": positions == 0, "even": positions % 2 == 0})
    whole = {**computed, "full_map": right["full_map"]}
    dense.assert_right(whole, right, visible, limit)
    return computed


def padded(pos: int, n_pad: int, side: str) -> Tensor:
    real = torch.ones(2, pos, dtype=torch.bool)
    real[1, slice(0, n_pad) if side == "left" else slice(pos - n_pad, pos)] = False
    return real


SINKS = torch.tensor([1.0, -20.0, 8.0, 2.0])
ALIBI = torch.tensor([0.5, 0.1, 0.02, 0.0])[None, :, None, None] * torch.arange(70.0)
CASES: dict[str, tuple[AttentionCall, Tensor]] = {
    "grouped heads": (random_call(130), dense.causal(130, 130)),
    "one KV head": (random_call(70, kv_heads=1), dense.causal(70, 70)),
    "no groups": (random_call(70, kv_heads=4), dense.causal(70, 70)),
    "cells of several tokens": (random_call(300, batch=1), dense.causal(300, 300)),
    "window": (random_call(150, mask=sliding(2, 150, 150, 17)), dense.causal(150, 150, 17)),
    "window as wide as a tile": (random_call(140, mask=sliding(2, 140, 140, 64)), dense.causal(140, 140, 64)),
    "cache": (random_call(37, 130), dense.causal(37, 130)),
    "window and cache": (random_call(7, 130, mask=sliding(2, 7, 130, 20)), dense.causal(7, 130, 20)),
    "one query": (random_call(1, 40), dense.causal(1, 40)),
    "one token": (random_call(1), dense.causal(1, 1)),
    "every key": (random_call(40, 70, causal=False), torch.ones(1, 40, 70, dtype=torch.bool)),
    "soft cap": (random_call(70, soft_cap=2.0), dense.causal(70, 70)),
    "learned sink": (random_call(70, sink_logits=SINKS), dense.causal(70, 70)),
    "bias by key": (random_call(70, bias=ALIBI), dense.causal(70, 70)),
    "left padding": (
        random_call(90, mask=sliding(2, 90, 90, 21, padded(90, 30, "left")), real=padded(90, 30, "left")),
        dense.causal(90, 90, 21) & padded(90, 30, "left")[:, None] & padded(90, 30, "left")[:, :, None],
    ),
    "right padding": (
        random_call(90, real=padded(90, 30, "right")),
        dense.causal(90, 90) & padded(90, 30, "right")[:, :, None],
    ),
    "everything": (
        random_call(
            100,
            soft_cap=5.0,
            sink_logits=SINKS,
            mask=sliding(2, 100, 100, 33, padded(100, 40, "left")),
            real=padded(100, 40, "left"),
        ),
        dense.causal(100, 100, 33) & padded(100, 40, "left")[:, None] & padded(100, 40, "left")[:, :, None],
    ),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_every_statistic_equals_the_dense_one(case: str, device: str) -> None:
    check(*CASES[case], device=device)


@pytest.mark.parametrize("case", ["grouped heads", "window and cache", "everything"])
def test_a_pass_by_keys_repeats_its_bits(case: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (check(*CASES[case], device=DEVICES[0]) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first["mass"], second["mass"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_fp32(dtype: torch.dtype) -> None:
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter has no products of bfloat16")
    call = random_call(130)
    rounded = {name: getattr(call, name).to(dtype) for name in ("query", "key", "value")}
    check(dataclasses.replace(call, **rounded), dense.causal(130, 130), 1e-3 if INTERPRETED else 1e-2, DEVICES[0])


# ------------------------------------------------------------------ edits
EDITS = [
    ScaleKeys((0, 5), 0.3),
    ScaleKeys(2, 4.0, heads=["L3H1", "L1H0"]),
    MaskKeys((0, 7)),
    MaskKeys(0, spare_self=False),
    MaskKeys((3, 4), heads=["L3H2"]),
    SlidingWindow(9, sinks=2),
    SlidingWindow(9, heads=["L3H0", "L3H3"]),
    SlidingWindow(500),
    MaskKeys(0, heads=["L2H2"]),
]


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_edits_of_scores_equal_the_block_kernel(edit: Any) -> None:
    for call in (random_call(70), random_call(33, 70, sink_logits=SINKS, soft_cap=6.0)):
        positions = Positions()
        positions.cached = call.shape.offset
        edits = edit.edits(positions)
        statistics = dense.make(makers(2, 70), call.shape)
        right = attend(call, statistics, edits)
        found, computed = passed(call, edits)
        torch.testing.assert_close(found, right, atol=2e-5, rtol=0)
        for name, value in dense.computed(statistics).items():
            torch.testing.assert_close(computed[name], value, atol=3e-5, rtol=1e-5, equal_nan=True, msg=name)


def test_what_has_no_closed_form_is_left_to_the_blocks() -> None:
    call = random_call(20)
    mass = [ReceivedMass(call.shape)]
    dense_mask = dense.causal(20, 20)[:, None]
    packed = dataclasses.replace(sliding(2, 20, 20, 5))
    packed.arguments["mask_function"] = lambda b, h, q, k: k <= q
    for other, statistics, edits, reason in (
        (call, [FullMap(call.shape)], (), "FullMap is measured block by block"),
        (dataclasses.replace(call, mask=dense_mask), mass, (), "mask has no closed form"),
        (dataclasses.replace(call, mask=packed), mass, (), "mask has no closed form"),
        (dataclasses.replace(call, bias=torch.zeros(1, 4, 20, 20)), mass, (), "bias of queries and keys"),
        (call, mass, AblateHeads(["L3H1"], "uniform").edits(Positions()), "an edit changes the pattern"),
        (call, mass, [*EDITS[0].edits(Positions()), *EDITS[2].edits(Positions())], "several edits"),
        (call, [PooledMap(call.shape), PooledMap(call.shape)], (), "asked for twice"),
        (call, [KeySetMass(call.shape, {str(n): torch.ones(2, 20) for n in range(9)})], (), "more than 8"),
    ):
        found = form_for(other, statistics, edits)
        assert isinstance(found, str) and reason in found


# ------------------------------------------------------------------ models
@pytest.mark.parametrize("name", FAST)
def test_families_on_the_fast_path(name: str, zoo: Path) -> None:
    ref = reference(name, "right", zoo)
    bridge = families.boot(name, zoo)
    found: dict[int, dict[str, Tensor]] = {}
    wanted = [maker for maker in dense.factories(2, ref.sets) if maker is not FullMap]
    if not INTERPRETED:
        bridge.to("cuda")
    with AttentionEngine(
        bridge,
        kernel="extra pass",
        statistics=wanted,
        on_layer=lambda layer, _, each: found.update({layer: dense.computed(each)}),
        real=ref.real,
    ):
        logits = bridge(ref.ids.to(ON_GPU if not INTERPRETED else "cpu")).cpu()
    assert float((logits - ref.logits)[ref.real].abs().max()) < 1e-3
    for layer, computed in found.items():
        pattern = ref.layers[layer]
        assert pattern is not None
        right = expected(ref, layer)
        dense.assert_right({**computed, "full_map": right["full_map"]}, right, pattern.visible, 1e-3)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)] if INTERPRETED else ["cuda"])
def test_a_scan_says_which_kernel_measured_and_gives_the_same_tables(device: str, zoo: Path) -> None:
    directory = families.checkpoint("mistral", zoo)
    model = load(directory, device=device)
    ids = families.random_ids(batch=2, pos=30)
    assert plan_for(model).kernel == "extra pass" and "equal those by blocks" in plan_for(model).kernel_reason
    quick = scan(model, tokens=ids)
    assert quick.meta["model"]["attention_kernel"] == "extra pass"
    for name, table in scan(families.boot("mistral", zoo), tokens=ids).tables.items():
        other = quick.tables[name]
        for column in table.select_dtypes("number"):
            left, right = (torch.tensor(each[column].to_numpy(float, na_value=float("nan"))) for each in (other, table))
            torch.testing.assert_close(left, right, atol=2e-4, rtol=1e-3, equal_nan=True, msg=f"{name} {column}")


def test_a_kernel_that_fails_or_errs_is_not_used(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sinklens.attention import extra_pass

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of resource: shared memory")

    give = dict(extra_pass._GIVE)
    model = load(families.checkpoint("llama", zoo), device=str(ON_GPU) if not INTERPRETED else "cpu")
    monkeypatch.setattr(extra_pass, "_passed", fails)
    found = plan._find_kernel(model, families.random_ids(batch=1, pos=20).to(next(model.parameters()).device))
    assert found[0] == "blocks" and "out of resource" in found[1]
    monkeypatch.undo()

    def doubled(statistic: Any, sums: Any) -> None:
        give[ReceivedMass](statistic, sums)
        statistic.mass *= 2

    monkeypatch.setitem(extra_pass._GIVE, ReceivedMass, doubled)
    found = plan._find_kernel(model, families.random_ids(batch=1, pos=20).to(next(model.parameters()).device))
    assert found[0] == "blocks" and "differs by" in found[1]
