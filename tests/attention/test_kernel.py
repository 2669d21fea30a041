"""The kernel against dense fp64 attention: every mask, every extra of an architecture, every length."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import and_masks, causal_mask_function, sliding_window_overlay

from sinklens.attention import AttentionCall, delta_logit
from sinklens.attention.distance_in_chunks import distance_in_chunks
from sinklens.attention.kernel import attend, make_shape
from sinklens.attention.masks import LazyMask
from sinklens.errors import InputError, UnsupportedArchitectureError
from tests.attention import dense

LENGTHS = (1, 2, 3, 127, 128, 129, 200, 300)
HEADS = 4
OUTPUT, STATISTICS = 2e-5, 5e-5
MIN = torch.finfo(torch.float32).min


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    yield torch.device(request.param)


def random_call(q_pos: int, k_pos: int | None = None, batch: int = 2, kv_heads: int = 2, **more: Any) -> AttentionCall:
    """A call with uneven attention; values are narrower than queries, as in latent attention."""
    generator = torch.Generator().manual_seed(q_pos)
    k_pos = k_pos or q_pos

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    query, key = 2 * draw(batch, HEADS, q_pos, 8), 2 * draw(batch, kv_heads, k_pos, 8)
    return AttentionCall(3, query, key, draw(batch, kv_heads, k_pos, 6), 8**-0.5, **more)


def to(call: AttentionCall, device: torch.device) -> AttentionCall:
    moved = {f.name: x.to(device) for f in dataclasses.fields(call) if isinstance(x := getattr(call, f.name), Tensor)}
    if isinstance(call.mask, LazyMask):
        arguments = call.mask.arguments
        padding = arguments["attention_mask"]
        padding = padding if padding is None else padding.to(device)
        moved["mask"] = LazyMask(arguments | {"device": device, "attention_mask": padding})
    return dataclasses.replace(call, **moved)


def check(call: AttentionCall, visible: Tensor, device: torch.device, **blocks: int) -> dict[str, Tensor]:
    """Output and every statistic equal the dense ones; ``visible`` is False in rows of padding."""
    batch, k_pos = call.query.shape[0], call.key.shape[2]
    positions = torch.arange(k_pos).expand(batch, -1)
    sets = {"first": positions == 0, "even": positions % 2 == 0}
    visible = visible.expand(batch, -1, -1)
    makers = dense.factories(batch, {name: keys.to(device) for name, keys in sets.items()})
    moved = to(call, device)
    statistics = dense.make(makers, moved.shape)
    found = attend(moved, statistics, **blocks)
    scores = dense.scores(call)
    pattern = dense.pattern(scores, visible, call.sink_logits)
    real = visible.any(-1)[:, None, :, None]
    gap = (found.cpu() - dense.output(pattern, call.value)).abs().masked_fill(~real, 0).max()
    assert found.dtype == call.value.dtype
    assert float(gap) < OUTPUT
    computed = dense.computed(statistics)
    dense.assert_right(computed, dense.statistics(pattern, scores, visible, sets), visible, STATISTICS)
    return computed | {"output": found}


def sliding(batch: int, q_pos: int, k_pos: int, window: int, padding: Tensor | None = None) -> LazyMask:
    function = and_masks(sliding_window_overlay(window), causal_mask_function)
    return LazyMask(
        dict(
            batch_size=batch,
            q_length=q_pos,
            kv_length=k_pos,
            q_offset=k_pos - q_pos,
            kv_offset=0,
            mask_function=function,
            attention_mask=padding,
            local_size=window,
            device="cpu",
            use_vmap=False,
        )
    )


# ------------------------------------------------------------------ lengths and masks
@pytest.mark.parametrize("pos", LENGTHS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_causal(pos: int, kv_heads: int, device: torch.device) -> None:
    check(random_call(pos, kv_heads=kv_heads), dense.causal(pos, pos), device)


@pytest.mark.parametrize("pos", LENGTHS)
def test_sliding_window(pos: int, device: torch.device) -> None:
    window = min(pos, 37)
    call = random_call(pos, mask=sliding(2, pos, pos, window))
    check(call, dense.causal(pos, pos, window), device)


@pytest.mark.parametrize(("q_pos", "k_pos"), [(1, 1), (1, 200), (2, 129), (7, 130), (100, 300)])
def test_decoding_with_a_cache(q_pos: int, k_pos: int, device: torch.device) -> None:
    check(random_call(q_pos, k_pos), dense.causal(q_pos, k_pos), device)
    call = random_call(q_pos, k_pos, mask=sliding(2, q_pos, k_pos, 9))
    check(call, dense.causal(q_pos, k_pos, 9), device)


@pytest.mark.parametrize(("q_pos", "k_pos"), [(2, 2), (129, 129), (300, 300), (40, 300)])
def test_margins_in_closed_form(q_pos: int, k_pos: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_logit, "CLOSED_FORM_FROM", 1)
    check(random_call(q_pos, k_pos), dense.causal(q_pos, k_pos), device)


@pytest.mark.parametrize(("q_pos", "k_pos"), [(1, 5), (40, 40), (130, 200), (200, 130)])
def test_every_key_visible(q_pos: int, k_pos: int, device: torch.device) -> None:
    check(random_call(q_pos, k_pos, causal=False), torch.ones(1, q_pos, k_pos, dtype=torch.bool), device)


def test_a_block_of_more_rows_than_keys(device: torch.device) -> None:
    seen = torch.ones(1, 200, 130, dtype=torch.bool)
    check(random_call(200, 130, causal=False), seen, device, rows_per_block=512)


def test_known_masks_are_not_evaluated(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and padding are arithmetic, block by block; reading them back would make a GPU's host wait."""

    def refuse(*_: Any) -> None:
        raise AssertionError("evaluated")

    monkeypatch.setattr(LazyMask, "rows", refuse)
    real = torch.ones(2, 150, dtype=torch.bool)
    real[1, :20] = False
    seen = dense.causal(150, 150, 21) & real[:, None]
    call = random_call(150, mask=sliding(2, 150, 150, 21, real), real=real)
    check(call, seen & real[:, :, None], device, rows_per_block=32)


@pytest.mark.parametrize("pos", [40, 200])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["lazy", "bool", "additive", "half"])
def test_padding_masks(pos: int, side: str, form: str, device: torch.device) -> None:
    real = torch.ones(2, pos, dtype=torch.bool)
    real[1, slice(0, pos // 3) if side == "left" else slice(pos - pos // 3, pos)] = False
    seen = dense.causal(pos, pos, 21) & real[:, None]
    mask: Any = sliding(2, pos, pos, 21, real)
    if form == "bool":
        mask = seen[:, None]
    elif form != "lazy":
        dtype = torch.float16 if form == "half" else torch.float32
        mask = torch.zeros(2, 1, pos, pos, dtype=dtype).masked_fill(~seen[:, None], torch.finfo(dtype).min)
    check(random_call(pos, mask=mask, real=real), seen & real[:, :, None], device)


def test_one_mask_for_all_sequences_and_rows(device: torch.device) -> None:
    keys = torch.arange(33) < 20
    call = random_call(33, causal=False, mask=keys[None, None, None])
    check(call, keys.expand(1, 33, -1), device)
    wider = torch.cat([keys, torch.zeros(31, dtype=torch.bool)])[None, None, None]  # an unfilled static cache
    check(dataclasses.replace(call, mask=wider), keys.expand(1, 33, -1), device)


def test_right_padding_needs_no_mask(device: torch.device) -> None:
    real = torch.ones(2, 140, dtype=torch.bool)
    real[1, 60:] = False
    padded = random_call(140, real=real)
    found = check(padded, dense.causal(140, 140) & real[:, :, None], device)
    short = dataclasses.replace(
        padded,
        **{name: getattr(padded, name)[1:, :, :60] for name in ("query", "key", "value")},
        real=None,
    )
    alone = check(short, dense.causal(60, 60), device)
    torch.testing.assert_close(found["mass"][1:, :, :60], alone["mass"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["entropy"][1:, :, :60], alone["entropy"], atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------ what architectures add
@pytest.mark.parametrize("pos", [3, 128, 200])
def test_soft_cap_bias_and_sinks(pos: int, device: torch.device) -> None:
    slopes = torch.tensor([0.5, 0.1, 0.02, 0.0])[None, :, None, None]
    alibi = slopes * (torch.arange(pos) - torch.arange(pos)[:, None])
    sinks = torch.tensor([1.0, -20.0, 8.0, 2.0])
    seen = dense.causal(pos, pos)
    check(random_call(pos, soft_cap=2.0), seen, device)
    check(random_call(pos, bias=alibi), seen, device)
    check(random_call(pos, bias=alibi[..., -1:, :]), seen, device)
    check(random_call(pos, sink_logits=sinks), seen, device)
    windowed = random_call(pos, soft_cap=5.0, bias=alibi, sink_logits=sinks, mask=sliding(2, pos, pos, 11))
    check(windowed, dense.causal(pos, pos, 11), device)


def test_a_sink_that_takes_nearly_everything(device: torch.device) -> None:
    # the little that is left must keep its digits: 1 - sink_mass has none left at a share of 1e-9
    call = random_call(150, sink_logits=torch.tensor([0.0, 12.0, 20.0, 40.0]))
    found = check(call, dense.causal(150, 150), device)
    assert float(found["top_weight"][:, 3].max()) < 1e-6
    assert float(found["missing_mass"][:, 3].min()) > 0.999


def test_the_first_row_and_single_keys(device: torch.device) -> None:
    found = check(random_call(5), dense.causal(5, 5), device)
    assert float(found["entropy"][..., 0].abs().max()) == 0
    assert float(found["distance"][..., 0].abs().max()) == 0
    assert found["delta_logit"][..., :2].isfinite().all()
    alone = check(random_call(1), dense.causal(1, 1), device)
    assert alone["delta_logit"].isnan().all()  # no row compares the only key with another


# ------------------------------------------------------------------ blocks
@pytest.mark.parametrize("blocks", [{"rows_per_block": 1}, {"rows_per_block": 7}, {"block_bytes": 1}])
@pytest.mark.parametrize("pos", [5, 150])
def test_block_sizes_change_nothing(blocks: dict[str, int], pos: int, device: torch.device) -> None:
    sinks = torch.tensor([1.0, -1.0, 2.0, 0.5])
    for call in (random_call(pos), random_call(pos, mask=sliding(2, pos, pos, 19), sink_logits=sinks)):
        window = 19 if call.mask is not None else None
        check(call, dense.causal(pos, pos, window), device, **blocks)


def test_all_blocks_small(device: torch.device) -> None:
    check(random_call(300), dense.causal(300, 300), device, rows_per_block=16, block_bytes=16 * 4 * 100)


def test_inputs_are_not_written_to() -> None:
    call = random_call(40, soft_cap=2.0, real=torch.ones(2, 40, dtype=torch.bool))
    before = [x.clone() for x in (call.query, call.key, call.value)]
    attend(call, dense.make(dense.factories(2), call.shape))
    assert all(torch.equal(x, y) for x, y in zip(before, (call.query, call.key, call.value), strict=True))


# ------------------------------------------------------------------ precision
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_accumulate_in_fp32(dtype: torch.dtype, device: torch.device) -> None:
    call = random_call(300)
    rounded = dataclasses.replace(call, query=call.query.to(dtype), key=call.key.to(dtype), value=call.value.to(dtype))
    makers = dense.factories(2)
    moved = to(rounded, device)
    statistics = dense.make(makers, moved.shape)
    found = attend(moved, statistics)
    assert found.dtype == dtype
    pattern = dense.pattern(dense.scores(rounded), dense.causal(300, 300))  # fp64, from the same rounded inputs
    mass = dense.computed(statistics)["mass"].cpu()
    assert mass.dtype == torch.float32
    torch.testing.assert_close(mass.double(), pattern.sum(2), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        found.cpu().double(), dense.output(pattern, rounded.value), rtol=2 * torch.finfo(dtype).eps, atol=1e-3
    )


def test_large_scores_do_not_overflow(device: torch.device) -> None:
    call = dataclasses.replace(random_call(64), scaling=300.0)
    statistics = dense.make(dense.factories(2), to(call, device).shape)
    found = attend(to(call, device), statistics).cpu()
    pattern = dense.pattern(dense.scores(call), dense.causal(64, 64))
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), dense.output(pattern, call.value), atol=5e-3, rtol=0)
    computed = dense.computed(statistics)
    for name in ("mass", "entropy", "distance", "top_weight", "missing_mass"):
        assert computed[name].isfinite().all(), name


def test_distances_at_long_context() -> None:
    """512 rows and 8,192 keys as a block of a GPU has them: near and far keys keep their digits."""
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(2, 512, 8192, generator=generator)
    first_row = 8192 - 512
    rows, keys = torch.arange(first_row, 8192)[:, None], torch.arange(8192)
    scores.masked_fill_(keys > rows, -math.inf)
    scores[1].masked_fill_(rows - keys > 3, -math.inf)  # nothing but neighbours
    right = (scores.double().softmax(-1) * (rows - keys)).sum(-1)
    found = distance_in_chunks(scores.softmax(-1), first_row, 0)
    gap = (found - right).abs()
    assert float(gap[0].max()) < 3e-3 and float(right[0].max()) > 3000
    assert float(gap[1].max()) < 2e-5
    part = distance_in_chunks(scores.softmax(-1)[1:, :, 7000:], first_row, 7000)
    torch.testing.assert_close(part, found[1:], atol=2e-5, rtol=0)


def test_keys_and_values_are_not_copied_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that spans several KV heads multiplies views of them."""
    used: list[int] = []
    product = torch.bmm

    def bmm(a: Tensor, b: Tensor, **more: Any) -> Tensor:
        used.append(b.untyped_storage().data_ptr())
        return product(a, b, **more)

    monkeypatch.setattr(torch, "bmm", bmm)
    attend(random_call(200, kv_heads=2), rows_per_block=32, block_bytes=1 << 28)
    assert len(used) == 14 and len(set(used)) == 2
    used.clear()
    real = torch.ones(2, 200, dtype=torch.bool)
    real[1, :20] = False  # sequences apart
    attend(random_call(200, kv_heads=2, mask=sliding(2, 200, 200, 50, real)), rows_per_block=32, block_bytes=1 << 28)
    assert len(used) == 28 and len(set(used)) == 2


# ------------------------------------------------------------------ rows and numbers that mean nothing
def test_rows_that_see_nothing_are_zero_and_not_a_number(device: torch.device) -> None:
    seen = dense.causal(40, 40, batch=2).clone()
    seen[0, 5:9] = False
    seen[1] = False  # a whole sequence
    found = check(random_call(40, mask=seen[:, None]), seen, device)
    assert not found["output"][1].any()
    assert not found["mass"][1].any()
    for name in (
        "entropy",
        "entropy_null",
        "distance",
        "top_weight",
        "missing_mass",
        "delta_logit",
        "pooled_map",
    ):
        assert found[name][1].isnan().all(), name
    assert (found["top_key"][1] == -1).all()


def test_a_batch_of_padding_only(device: torch.device) -> None:
    real = torch.zeros(2, 20, dtype=torch.bool)
    check(random_call(20, real=real), dense.causal(20, 20) & real[:, :, None], device)


def test_nan_stays_nan() -> None:
    call = random_call(20)
    call.query[0, 1, 7] = math.nan
    statistics = dense.make(dense.factories(2), call.shape)
    found = attend(call, statistics)
    computed = dense.computed(statistics)
    assert found[0, 1, 7].isnan().all()
    assert found[1].isfinite().all()
    assert computed["mass"][0, 1, :8].isnan().all()
    assert computed["top_weight"][0, 1, 7].isnan()
    assert computed["entropy"][0, 1, 7].isnan()
    assert computed["entropy"][0, 1, 8:].isfinite().all()
    assert computed["mass"][0, 0].isfinite().all()


# ------------------------------------------------------------------ sizes
def test_shape_of_a_call() -> None:
    shape = make_shape(0, (1, 2, 3), 300, torch.device("cpu"))
    assert (shape.cell, shape.k_padded, shape.offset) == (4, 300, 297)
    assert make_shape(0, (1, 2, 301), 301, torch.device("cpu")).k_padded == 304
    assert make_shape(0, (1, 2, 1), 1, torch.device("cpu")).cell == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": torch.zeros(2, 3, 5, 8)}, "divisor of the heads"),
        ({"value": torch.zeros(1, 2, 5, 6)}, "same"),
        ({"key": torch.zeros(2, 2, 4, 8), "value": torch.zeros(2, 2, 4, 6)}, "5 queries, got 4 keys"),
        ({"real": torch.ones(2, 4, dtype=torch.bool)}, r"Expected real positions \[2 5\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Tensor], message: str) -> None:
    call = dataclasses.replace(random_call(5), **change)
    with pytest.raises(InputError, match=message):
        attend(call)


def test_a_mask_that_differs_between_heads_is_refused() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="same for all heads"):
        attend(random_call(5, mask=torch.ones(2, HEADS, 5, 5, dtype=torch.bool)))
