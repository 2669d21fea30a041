"""The last rows of a call, and fused attention after a cache, equal the whole call's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.masking_utils import and_masks, causal_mask_function, sliding_window_overlay

from sinklens.attention import AttentionCall, FullMap, TopKey
from sinklens.attention.fused import fused
from sinklens.attention.kernel import attend
from sinklens.attention.last_rows import last_rows
from sinklens.attention.masks import LazyMask, lazy_mask
from tests.ties import same_choice

BATCH, HEADS, KV, D, N = 2, 4, 2, 8, 50


def make_call(q_pos: int = N, k_pos: int = N, **more: Any) -> AttentionCall:
    generator = torch.Generator().manual_seed(q_pos + 100 * k_pos)
    query = torch.randn(BATCH, HEADS, q_pos, D, generator=generator)
    key, value = torch.randn(2, BATCH, KV, k_pos, D, generator=generator)
    return AttentionCall(layer=0, query=query, key=key, value=value, scaling=0.5, **more)


def window(q_pos: int, k_pos: int) -> LazyMask:
    function = and_masks(sliding_window_overlay(7), causal_mask_function)
    mask = lazy_mask(BATCH, q_pos, k_pos, k_pos - q_pos, mask_function=function, local_size=7)
    assert isinstance(mask, LazyMask)
    return mask


def additive(q_pos: int, k_pos: int) -> torch.Tensor:
    hidden = torch.ones(q_pos, k_pos, dtype=torch.bool).triu(1 + k_pos - q_pos)
    hidden[:, 3] = True
    return torch.zeros(BATCH, 1, q_pos, k_pos).masked_fill(hidden, torch.finfo(torch.float32).min)


CALLS = {
    "plain": lambda: make_call(),
    "after a cache": lambda: make_call(20, mask=lazy_mask(BATCH, 20, N, N - 20)),
    "window": lambda: make_call(mask=window(N, N)),
    "window after a cache": lambda: make_call(20, mask=window(20, N)),
    "additive mask": lambda: make_call(mask=additive(N, N)),
    "soft cap": lambda: make_call(soft_cap=2.0),
    "learned sink": lambda: make_call(sink_logits=torch.tensor([0.5, 1.0, -1.0, 3.0])),
    "bias": lambda: make_call(bias=torch.randn(1, HEADS, N, N, generator=torch.Generator().manual_seed(1))),
    "bias by key": lambda: make_call(bias=torch.randn(1, HEADS, 1, N, generator=torch.Generator().manual_seed(2))),
    "padded": lambda: make_call(real=torch.arange(N)[None].expand(BATCH, -1) >= torch.tensor([[0], [46]])),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("count", [1, 5, 20, 80])
def test_last_rows_are_those_of_the_whole_call(name: str, count: int) -> None:
    call = CALLS[name]()
    whole = attend(call, [seen := TopKey(call.shape), weights := FullMap(call.shape)])
    top = seen.compute()
    end = last_rows(call, count)
    rows = min(count, call.shape.q_pos)
    assert end.shape.q_pos == rows
    output, own = attend(end, [alone := TopKey(end.shape)]), alone.compute()
    torch.testing.assert_close(output, whole[:, :, -rows:], atol=1e-6, rtol=1e-5)
    kept = own["top_key"] >= 0  # -1: a row without weight
    assert torch.equal(kept, top["top_key"][..., -rows:] >= 0)
    pattern = weights.compute()["full_map"].nan_to_num()[..., -rows:, :]
    for keys in (own["top_key"], top["top_key"][..., -rows:]):
        same_choice(keys[kept], pattern[kept], 1e-6)
    torch.testing.assert_close(own["top_weight"], top["top_weight"][..., -rows:], equal_nan=True, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_fused_equals_the_engine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sinklens.attention.fused import ROWS

    monkeypatch.setitem(ROWS, "cpu", 7)  # several pieces
    call = CALLS[name]()
    torch.testing.assert_close(fused(call), attend(call), atol=1e-6, rtol=1e-5)


def test_fused_takes_one_query_after_a_cache() -> None:
    call = make_call(1, mask=lazy_mask(BATCH, 1, N, N - 1))
    assert call.mask is None
    torch.testing.assert_close(fused(call), attend(call), atol=1e-6, rtol=1e-5)


def test_values_of_another_width_do_not_write_out_the_pattern() -> None:
    call = make_call()
    wide = replace(call, value=torch.randn(BATCH, KV, N, D + 3))
    torch.testing.assert_close(fused(wide), attend(wide), atol=1e-6, rtol=1e-5)


def test_only_a_filled_causal_mask_is_causal_only() -> None:
    def mask(q: int, k: int, offset: int, **more: Any) -> LazyMask:
        found = lazy_mask(BATCH, q, k, offset, **more)
        assert isinstance(found, LazyMask)
        return found

    assert mask(7, 20, 13).causal_only
    assert not mask(4, 32, 0, allow_is_causal_skip=False).causal_only
    assert not mask(4, 32, 0).causal_only  # an unfilled static cache
    assert not window(7, 20).causal_only
    padding = torch.ones(BATCH, 20, dtype=torch.bool).index_fill(1, torch.tensor([0]), False)
    assert not mask(7, 20, 13, attention_mask=padding).causal_only
    assert not mask(7, 20, 13, use_vmap=True).causal_only
