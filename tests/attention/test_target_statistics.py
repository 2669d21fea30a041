"""Masses on keys named query by query, windowed and partial distances, future influence: all against plain loops."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.masking_utils import and_masks, causal_mask_function, sliding_window_overlay

from sinklens.attention import AttentionCall, AttentionEngine, StatisticFactory, TargetMass, plan_for
from sinklens.attention.distance_outside import DistanceOutside
from sinklens.attention.future_influence import FutureInfluence
from sinklens.attention.kernel import attend, make_shape
from sinklens.attention.masks import LazyMask
from sinklens.attention.windowed_distance import WindowedDistance
from sinklens.errors import InputError
from tests import oracle
from tests.attention import dense
from tests.attention.target_oracle import naive_future, naive_outside, naive_target, naive_windowed
from tests.attention.test_properties import HEADS, Spread, assert_same, draw_call
from tests.families import boot, padding_mask, random_ids
from tests.pretend_cuda.aside import aside

WINDOW, LOW, HIGH = 4, 2, 9
LIMIT = 2e-6


# ------------------------------------------------------------------ one call with everything in it
def draw_targets(batch: int, q_pos: int, k_pos: int, seed: int = 0) -> dict[str, Tensor]:
    """The token before, some keys anywhere (also ahead, where a query sees nothing), and none."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.arange(k_pos - q_pos, k_pos)
    before = torch.where(own > 0, own - 1, -1)[None, :, None].expand(batch, -1, 1)
    several = torch.rand(batch, q_pos, k_pos, generator=generator).argsort(-1)[..., :3].clone()
    several[torch.rand(several.shape, generator=generator) < 0.4] = -1
    return {"before": before, "several": several, "none": torch.empty(batch, q_pos, 0, dtype=torch.int64)}


def makers(targets: dict[str, Tensor], excluded: Tensor, queries: Tensor | None = None) -> list[StatisticFactory]:
    return [
        partial(TargetMass, targets=targets),
        partial(WindowedDistance, window=WINDOW),
        partial(FutureInfluence, low=LOW, high=HIGH, queries=queries),
        partial(DistanceOutside, excluded=excluded),
    ]


@aside()
def expected(
    pattern: Tensor, seen: Tensor, targets: dict[str, Tensor], excluded: Tensor, queries: Tensor | None = None
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, keys in targets.items():
        found[f"target_{name}"], found[f"target_{name}_null"] = naive_target(pattern, seen, keys)
    found["windowed_distance"], found["windowed_distance_null"] = naive_windowed(pattern, seen, WINDOW)
    found["future_influence"], found["future_influence_null"] = naive_future(pattern, seen, LOW, HIGH, queries)
    found["distance_outside"], found["distance_outside_null"] = naive_outside(pattern, seen, excluded)
    return found


def assert_right(found: dict[str, Tensor], right: dict[str, Tensor], limit: float = LIMIT) -> None:
    assert set(found) == set(right)
    for name, value in right.items():
        # the moments behind a distance are counted from the last of a block's 128 rows
        absolute, relative = (15 * limit, 3 * limit) if "distance" in name else (limit, 0)
        torch.testing.assert_close(
            found[name], value, atol=absolute, rtol=relative, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
        )


def check(call: AttentionCall, seen: Tensor, **blocks: int) -> dict[str, Tensor]:
    """All four against the loops; ``seen`` is False in rows of padding."""
    (batch, _, q_pos, _), k_pos = call.query.shape, call.key.shape[2]
    seen = seen.expand(batch, -1, -1)
    targets, excluded = draw_targets(batch, q_pos, k_pos), torch.arange(k_pos).expand(batch, -1) % 7 == 0
    generator = torch.Generator().manual_seed(k_pos)
    queries = torch.rand(batch, q_pos, generator=generator) < 0.8
    statistics = dense.make(makers(targets, excluded, queries), call.shape)
    attend(call, statistics, **blocks)
    pattern = dense.pattern(dense.scores(call), seen, call.sink_logits)
    found = dense.computed(statistics)
    assert_right(found, expected(pattern, seen, targets, excluded, queries))
    return found


def random_call(q_pos: int, k_pos: int | None = None, kv_heads: int = 2, **more: Any) -> AttentionCall:
    generator = torch.Generator().manual_seed(q_pos)
    k_pos = k_pos or q_pos
    query = 2 * torch.randn(2, HEADS, q_pos, 8, generator=generator)
    key = 2 * torch.randn(2, kv_heads, k_pos, 8, generator=generator)
    return AttentionCall(3, query, key, torch.randn(2, kv_heads, k_pos, 6, generator=generator), 8**-0.5, **more)


def sliding(q_pos: int, k_pos: int, window: int, padding: Tensor | None = None) -> LazyMask:
    function = and_masks(sliding_window_overlay(window), causal_mask_function)
    sizes = {"batch_size": 2, "q_length": q_pos, "kv_length": k_pos, "q_offset": k_pos - q_pos, "kv_offset": 0}
    mask = {"mask_function": function, "attention_mask": padding, "local_size": window}
    return LazyMask(sizes | mask | {"device": "cpu", "use_vmap": False})


# ------------------------------------------------------------------ masks, lengths, blocks
@pytest.mark.parametrize("pos", [1, 2, 3, 40, 127, 129, 150])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_causal(pos: int, kv_heads: int) -> None:
    check(random_call(pos, kv_heads=kv_heads), dense.causal(pos, pos))


@pytest.mark.parametrize("pos", [2, 30, 140])
@pytest.mark.parametrize("window", [1, 3, 11])
def test_sliding_window(pos: int, window: int) -> None:
    window = min(pos, window)
    check(random_call(pos, mask=sliding(pos, pos, window)), dense.causal(pos, pos, window))


@pytest.mark.parametrize(("q_pos", "k_pos"), [(1, 1), (1, 150), (7, 130), (60, 140)])
def test_with_a_cache(q_pos: int, k_pos: int) -> None:
    check(random_call(q_pos, k_pos), dense.causal(q_pos, k_pos))
    check(random_call(q_pos, k_pos, mask=sliding(q_pos, k_pos, 9)), dense.causal(q_pos, k_pos, 9))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["lazy", "bool", "additive"])
def test_padding(side: str, form: str) -> None:
    pos = 45
    real = torch.ones(2, pos, dtype=torch.bool)
    real[1, slice(0, 15) if side == "left" else slice(30, pos)] = False
    seen = dense.causal(pos, pos, 21) & real[:, None]
    mask: Any = sliding(pos, pos, 21, real)
    if form == "bool":
        mask = seen[:, None]
    elif form == "additive":
        mask = torch.zeros(2, 1, pos, pos).masked_fill(~seen[:, None], torch.finfo(torch.float32).min)
    check(random_call(pos, mask=mask, real=real), seen & real[:, :, None])


def test_right_padding_without_a_mask_changes_nothing() -> None:
    real = torch.ones(2, 60, dtype=torch.bool)
    real[1, 25:] = False
    padded = random_call(60, real=real)
    check(padded, dense.causal(60, 60) & real[:, :, None])


def test_learned_sinks_soft_caps_and_biases() -> None:
    pos = 50
    alibi = torch.tensor([0.5, 0.1, 0.02, 0.0])[None, :, None, None] * (torch.arange(pos) - torch.arange(pos)[:, None])
    sinks = torch.tensor([1.0, -20.0, 8.0, 2.0])
    check(random_call(pos, sink_logits=sinks), dense.causal(pos, pos))
    check(random_call(pos, soft_cap=2.0, bias=alibi), dense.causal(pos, pos))


@pytest.mark.parametrize("blocks", [{"rows_per_block": 1}, {"rows_per_block": 7}, {"block_bytes": 1}])
def test_block_sizes_change_nothing(blocks: dict[str, int]) -> None:
    check(random_call(60), dense.causal(60, 60), **blocks)
    check(random_call(60, mask=sliding(60, 60, 5)), dense.causal(60, 60, 5), **blocks)


def test_a_window_longer_than_the_text_is_the_plain_distance() -> None:
    call = random_call(30)
    statistic = WindowedDistance(call.shape, window=10_000)
    attend(call, [statistic])
    pattern = dense.pattern(dense.scores(call), dense.causal(30, 30))
    back = (torch.arange(30)[:, None] - torch.arange(30)).clamp(min=0)
    found = statistic.compute()["windowed_distance"]
    torch.testing.assert_close(found, (pattern * back).sum(-1).float(), atol=2e-5, rtol=0)


@pytest.mark.cuda
def test_on_a_gpu() -> None:
    for mask, window in ((None, None), (sliding(140, 140, 9), 9)):
        call = random_call(140, mask=mask)
        targets, excluded = draw_targets(2, 140, 140), torch.arange(140).expand(2, -1) % 7 == 0
        on_gpu = {name: getattr(call, name).cuda() for name in ("query", "key", "value")}
        on_gpu |= {} if mask is None else {"mask": LazyMask(mask.arguments | {"device": "cuda"})}
        moved = dataclasses.replace(call, **on_gpu)
        statistics = dense.make(makers(targets, excluded), moved.shape)
        attend(moved, statistics)
        seen = dense.causal(140, 140, window).expand(2, -1, -1)
        pattern = dense.pattern(dense.scores(call), seen)
        found = {name: value.cpu() for name, value in dense.computed(statistics).items()}
        assert_right(found, expected(pattern, seen, targets, excluded), 2e-5)


# ------------------------------------------------------------------ constructed patterns
def one_hot(keys: Tensor, heads: int = 1) -> AttentionCall:
    """Attention of query i on ``keys[i]`` alone: queries and keys are one-hot vectors, far apart in score."""
    pos = len(keys)
    eye = torch.eye(pos)
    query = (200 * eye[keys])[None, None].expand(1, heads, -1, -1)
    return AttentionCall(0, query, eye[None, None], torch.randn(1, 1, pos, 4), 1.0)


def test_heads_with_one_key_by_hand() -> None:
    pos, back = 30, 3
    call = one_hot((torch.arange(pos) - back).clamp(min=0))
    excluded = (torch.arange(pos) == 0)[None]
    statistics = dense.make(makers(draw_targets(1, pos, pos), excluded), call.shape)
    attend(call, statistics)
    found = dense.computed(statistics)
    assert found["target_before"][0, 0, 2:].abs().max() == 0 and found["target_before"][0, 0, 1] == 1
    assert found["target_before"][0, 0, 0].isnan()
    assert found["windowed_distance"][0, 0, back:].eq(back).all()
    assert found["distance_outside"][0, 0, back + 1 :].eq(back).all()
    assert found["distance_outside"][0, 0, : back + 1].isnan().all()  # all of it on the excluded key
    far = one_hot((torch.arange(pos) - 20).clamp(min=0))
    statistic = WindowedDistance(far.shape, WINDOW)
    attend(far, [statistic])
    assert statistic.compute()["windowed_distance"][0, 0, 20:].eq(WINDOW).all()


def test_one_hot_column_has_influence_one_there_and_the_last_positions_none() -> None:
    pos, column, low, high = 61, 5, 10, 50
    call = one_hot(torch.arange(pos).clamp(max=column))
    statistic = FutureInfluence(call.shape, low, high)
    attend(call, [statistic])
    found = statistic.compute()["future_influence"][0, 0]
    assert found[column] == 1 and found[:column].eq(0).all() and found[column + 1 : pos - low].eq(0).all()
    assert found.isnan().sum() == low and found[pos - low :].isnan().all()


def test_uniform_attention_equals_its_nulls() -> None:
    pos = 40
    call = dataclasses.replace(random_call(pos), scaling=0.0)
    excluded = torch.arange(pos).expand(2, -1) == 0
    statistics = dense.make(makers(draw_targets(2, pos, pos), excluded), call.shape)
    attend(call, statistics)
    found = dense.computed(statistics)
    for name in ("target_before", "target_several", "windowed_distance", "future_influence", "distance_outside"):
        null = found[f"{name}_null"][:, None].expand_as(found[name])
        torch.testing.assert_close(found[name], null, atol=4e-5, rtol=1e-6, equal_nan=True)
    outside = found["distance_outside"][0, 0, 1:]
    torch.testing.assert_close(outside, torch.arange(pos - 1) / 2, atol=4e-5, rtol=0)


# ------------------------------------------------------------------ invariants
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**16),
    pos=st.integers(1, 40),
    rows=st.integers(1, 16),
    choices=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    order=st.permutations(range(3)),
)
def test_rows_measured_apart_merge_to_the_whole(
    seed: int, pos: int, rows: int, choices: list[int], order: list[int]
) -> None:
    call = draw_call(seed, pos)
    make = partial(
        dense.make, makers(draw_targets(2, pos, pos, seed), torch.arange(pos).expand(2, -1) % 5 == 0), call.shape
    )
    parts = [make() for _ in range(3)]
    attend(call, [Spread(call.shape, parts, choices)], rows_per_block=rows)
    whole = make()
    attend(call, whole)
    first, second, third = (parts[index] for index in order)
    for a, b, c in zip(first, second, third, strict=True):
        a.merge(b), a.merge(c)
    assert_same(dense.computed(first), dense.computed(whole))


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**16),
    pos=st.integers(1, 40),
    kv_heads=st.sampled_from([1, 2]),
    order=st.permutations(range(HEADS)),
)
def test_kv_groups_heads_and_sequences(seed: int, pos: int, kv_heads: int, order: list[int]) -> None:
    call = draw_call(seed, pos, kv_heads=kv_heads)
    targets, excluded = draw_targets(2, pos, pos, seed), torch.arange(pos).expand(2, -1) % 5 == 0

    def measure(call: AttentionCall, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        statistics = dense.make(makers(targets, excluded), call.shape)
        attend(call, statistics)
        return dense.computed(statistics)

    copies = {name: getattr(call, name).repeat_interleave(HEADS // kv_heads, 1) for name in ("key", "value")}
    expanded = dataclasses.replace(call, **copies)
    found = measure(call, targets)
    assert_same(found, measure(expanded, targets))
    names = ("query", "key", "value")
    permuted = dataclasses.replace(expanded, **{name: getattr(expanded, name)[:, order] for name in names})
    assert_same(measure(permuted, targets), {n: v if v.ndim == 2 else v[:, order] for n, v in found.items()})
    flipped = dataclasses.replace(call, **{name: getattr(call, name).flip(0) for name in (*names, "real")})
    flipped_targets = {name: keys.flip(0) for name, keys in targets.items()}
    assert_same(measure(flipped, flipped_targets), {name: value.flip(0) for name, value in found.items()})


# ------------------------------------------------------------------ inside models
@pytest.mark.parametrize("path", ["own", "fallback"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "bloom", "gptj"])
@pytest.mark.filterwarnings("ignore:.*is measured through")
def test_in_a_model(name: str, path: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    zoo = tmp_path_factory.getbasetemp() / "target_zoo"
    zoo.mkdir(exist_ok=True)
    model, ids = boot(name, Path(zoo)), random_ids(2, 40)
    real = padding_mask(2, 40, 9, "right").bool()
    targets, excluded = draw_targets(2, 40, 40), torch.arange(40).expand(2, -1) == 0
    found: dict[int, dict[str, Tensor]] = {}
    way = plan_for(model).path if path == "own" else "fallback"
    with AttentionEngine(
        model,
        statistics=makers(targets, excluded),
        path=way,
        real=real,
        on_layer=lambda layer, value, statistics: found.__setitem__(layer, dense.computed(statistics)),
    ):
        model(ids, return_type=None)
    for layer in oracle.full_patterns(model, ids):
        assert layer is not None
        seen = layer.visible & real[:, :, None]
        assert_right(found[layer.layer], expected(layer.pattern, seen, targets, excluded), 1e-5)


# ------------------------------------------------------------------ refusals
def test_targets_that_cannot_be_meant() -> None:
    shape = make_shape(0, (1, 2, 4), 4, torch.device("cpu"))

    def refused(targets: Tensor, match: str) -> None:
        with pytest.raises(InputError, match=match):
            TargetMass(shape, {"mine": targets})

    refused(torch.zeros(1, 3, 1, dtype=torch.int64), r"\[1 4 m\]")
    refused(torch.zeros(1, 4, 1), "integers")
    refused(torch.full((1, 4, 1), 4), "from 0 to 3")
    refused(torch.full((1, 4, 1), -2), "got -2")
    refused(torch.zeros(1, 4, 2, dtype=torch.int64), "twice")
    TargetMass(shape, {"mine": torch.full((1, 4, 2), -1)})
    with pytest.raises(InputError, match="at least 1"):
        WindowedDistance(shape, 0)
    with pytest.raises(InputError, match="low <= high"):
        FutureInfluence(shape, 5, 4)
    with pytest.raises(InputError, match="queries"):
        FutureInfluence(shape, queries=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="excluded"):
        DistanceOutside(shape, torch.zeros(1, 3, dtype=torch.bool))
