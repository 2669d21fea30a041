"""Edits of scores and patterns: exactly what dense attention with the same change gives, on both paths."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens.attention import AttentionEngine, Block, Statistic
from sinklens.attention.kernel import attend
from sinklens.errors import InputError, UnsupportedArchitectureError
from tests.attention import dense
from tests.attention.test_kernel import random_call, sliding
from tests.families import FAMILIES, boot, padding_mask, random_ids

POS = 40
GAMMA = 0.03
SCALE = 0.5
LIVE = [name for name, family in FAMILIES.items() if family.scores == "live"]
DEAD = [n for n, f in FAMILIES.items() if f.scores == "pattern" and f.path == "fallback"]


class ScaleFirstKey:
    """Adds log(gamma) to the scores of key 0: its weight shrinks gamma-fold before renormalisation."""

    def edit_scores(self, block: Block) -> None:
        if block.keys.start == 0:
            block.scores[..., 0] += math.log(GAMMA)


class HideKeys:
    """Hides other keys from every head: head h loses keys h, h + 5, h + 10, ... except the query's own."""

    def edit_scores(self, block: Block) -> None:
        for index, head in enumerate(range(block.heads.start, block.heads.stop)):
            block.scores[index].masked_fill_(hidden_for(head, block.rows, block.keys, block), -math.inf)


def hidden_for(head: int, rows: slice, keys: slice, block: Block) -> Tensor:
    own = torch.arange(rows.start, rows.stop)[:, None] + block.shape.offset
    key = torch.arange(keys.start, keys.stop)
    return (key % 5 == head % 5) & (key != own)


class HideEverything:
    """Hides every key from rows 3 and 4 of head 1."""

    def edit_scores(self, block: Block) -> None:
        for row in (3, 4):
            if block.heads.start <= 1 < block.heads.stop and block.rows.start <= row < block.rows.stop:
                block.scores[1 - block.heads.start, row - block.rows.start] = -math.inf


class ScalePattern:
    """Halves every weight but the one on the first key."""

    def edit_pattern(self, block: Block) -> None:
        first = 1 - block.keys.start if block.keys.start == 0 else 0
        block.pattern[..., first:] *= SCALE


class Nothing:
    """Changes nothing."""


def dense_edit(edit: Any, scores: Tensor, visible: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Edited scores and pattern of the same change on whole tensors."""
    scores = scores.double().clone()
    batch, heads, q_pos, k_pos = scores.shape
    seen = visible[:, None].expand(batch, heads, -1, -1).clone()
    rows, keys = torch.arange(k_pos - q_pos, k_pos)[:, None], torch.arange(k_pos)
    if isinstance(edit, ScaleFirstKey):
        scores[..., 0] += math.log(GAMMA)
    if isinstance(edit, HideKeys):
        for head in range(heads):
            seen[:, head] &= ~((keys % 5 == head % 5) & (keys != rows))
    if isinstance(edit, HideEverything):
        seen[:, 1, 3:5] = False
    pattern = dense.pattern(scores, seen, sinks)
    if isinstance(edit, ScalePattern):
        pattern[..., 1:] *= SCALE
    return scores, pattern


EDITS = (ScaleFirstKey, HideKeys, HideEverything, ScalePattern, Nothing)
HIDING = (HideKeys, HideEverything)


# ------------------------------------------------------------------ the kernel
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("pos", [POS, 150])
@pytest.mark.parametrize("extra", ["plain", "window", "sink"])
def test_kernel_edits_equal_dense_ones(edit: Any, pos: int, extra: str) -> None:
    window = 9 if extra == "window" else None
    sinks = torch.tensor([1.0, -1.0, 2.0, 0.5]) if extra == "sink" else None
    mask = sliding(2, pos, pos, 9) if window else None
    call = random_call(pos, mask=mask, sink_logits=sinks)
    visible = dense.causal(pos, pos, window, batch=2)
    for blocks in ({}, {"rows_per_block": 8, "block_bytes": 1}):
        statistics = dense.make(dense.factories(2), call.shape)
        found = attend(call, statistics, [edit()], **blocks)
        scores, pattern = dense_edit(edit(), dense.scores(call), visible, sinks)
        torch.testing.assert_close(found.double(), dense.output(pattern, call.value), atol=2e-5, rtol=0)
        check_statistics(dense.computed(statistics), edit, pattern, scores, visible)


def check_statistics(computed: dict[str, Tensor], edit: Any, pattern: Tensor, scores: Tensor, visible: Tensor) -> None:
    """Right, or NaN: margins are not applicable where an edit took scores away."""
    expected = dense.statistics(pattern, scores, visible)
    margins, right = computed.pop("delta_logit"), expected.pop("delta_logit")
    dense.assert_right(computed, expected, visible, 1e-4)
    if edit in HIDING:
        assert (margins.isnan() | torch.isclose(margins.double(), right, atol=1e-4)).all()
        assert margins[:, 1].isnan().any()
    else:
        torch.testing.assert_close(margins.double(), right, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_a_row_whose_keys_are_all_hidden_has_no_numbers() -> None:
    call = random_call(20)
    statistics = dense.make(dense.factories(2), call.shape)
    found = attend(call, statistics, [HideEverything()])
    computed = dense.computed(statistics)
    assert not found[:, 1, 3:5].any()
    assert (computed["missing_mass"][:, 1, 3:5] == 1).all()
    assert (computed["top_weight"][:, 1, 3:5] == 0).all()
    assert (computed["top_key"][:, 1, 3:5] == -1).all()
    assert computed["entropy"][:, 1, 3:5].isnan().all()
    assert computed["distance"][:, 1, 3:5].isnan().all()
    assert computed["entropy"][:, 0].isfinite().all()


def test_edits_run_in_order() -> None:
    call = random_call(20)
    seen: list[str] = []

    class Mark:
        def __init__(self, name: str) -> None:
            self.name = name

        def edit_scores(self, block: Block) -> None:
            seen.append(f"scores {self.name}")
            assert block.scores[..., 1:].isneginf().any()  # hidden keys hold -inf before the softmax

        def edit_pattern(self, block: Block) -> None:
            seen.append(f"pattern {self.name}")
            assert torch.isfinite(block.scores).all()

    attend(call, [], [Mark("a"), Mark("b")])
    assert seen == ["scores a", "scores b", "pattern a", "pattern b"] * 2


def test_an_edit_may_read_what_statistics_read() -> None:
    class Peek:
        def edit_pattern(self, block: Block) -> None:
            assert block.top[0].max() <= 1 + 1e-6
            assert torch.allclose(block.row_sum, torch.ones(()))
            block.pattern *= SCALE

    call = random_call(20)
    statistics = dense.make(dense.factories(2), call.shape)
    attend(call, statistics, [Peek()])
    computed = dense.computed(statistics)
    torch.testing.assert_close(computed["missing_mass"], torch.full((2, 4, 20), 1 - SCALE))
    assert float(computed["top_weight"].max()) <= SCALE + 1e-6


# ------------------------------------------------------------------ models
def bridge_hooks(name: str, edit: Any) -> list[tuple[str, Any]]:
    """The same change written as TransformerLens hooks, where the bridge lets them reach the output."""
    hidden = torch.finfo(torch.float32).min

    def on_scores(scores: Tensor, hook: Any) -> Tensor:
        visible = scores[:, 0] > -1e37
        edited, _ = dense_edit(edit(), scores, visible, None)
        if edit is HideKeys:
            keys = torch.arange(POS)
            for head in range(scores.shape[1]):
                edited[:, head].masked_fill_((keys % 5 == head % 5) & (keys != keys[:, None]), hidden)
        return edited.float().masked_fill(~visible[:, None], hidden)

    def on_pattern(pattern: Tensor, hook: Any) -> Tensor:
        pattern = pattern.clone()
        pattern[..., 1:] *= SCALE
        return pattern

    point, function = ("hook_pattern", on_pattern) if edit is ScalePattern else ("hook_attn_scores", on_scores)
    return [(f"blocks.{layer}.attn.{point}", function) for layer in FAMILIES[name].attention_layers]


@pytest.mark.parametrize("edit", [ScaleFirstKey, HideKeys, ScalePattern, Nothing])
@pytest.mark.parametrize("name", LIVE)
def test_edited_models_equal_hooked_bridges(name: str, edit: Any, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    real = padding_mask(2, POS, 7, "right").bool()
    plain = bridge(ids)
    with bridge.hooks(fwd_hooks=bridge_hooks(name, edit)):
        expected = bridge(ids)
    logits: dict[str, Tensor] = {}
    found: dict[str, list[dict[str, Tensor]]] = {}
    paths = ["fallback"] if FAMILIES[name].path == "fallback" else ["fast", "fallback"]
    for path in paths:
        found[path] = []

        def collect(layer: int, value: Tensor, statistics: list[Statistic], path: str = path) -> None:
            found[path].append(dense.computed(statistics))

        with AttentionEngine(
            bridge,
            path=path,
            edits=[edit()],
            statistics=dense.factories(2),
            on_layer=collect,
            real=real,
        ):
            logits[path] = bridge(ids)
        torch.testing.assert_close(logits[path], expected, atol=5e-5, rtol=0)
    assert (float((expected - plain).abs().max()) > 1e-2) == (edit is not Nothing)
    assert torch.equal(bridge(ids), plain)
    for computed in found[paths[0]]:
        if edit is HideKeys:
            assert computed["delta_logit"].isnan().all()
    for fast, slow in zip(found[paths[0]], found[paths[-1]], strict=True):
        for key, value in fast.items():
            if key in ("full_map", "pooled_map", "top_key"):
                continue  # padding rows differ, and ties
            torch.testing.assert_close(slow[key], value, atol=1e-4, rtol=1e-4, equal_nan=True, msg=key)


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "bloom", "mpt", "codegen"])
def test_rows_without_any_key_on_both_paths(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    outputs = []
    paths = ["fallback"] if FAMILIES[name].path == "fallback" else ["fast", "fallback"]
    for path in paths:
        found: list[dict[str, Tensor]] = []
        with AttentionEngine(
            bridge,
            path=path,
            edits=[HideEverything()],
            statistics=dense.factories(2),
            on_layer=lambda i, v, s, found=found: found.append(dense.computed(s)),
        ):
            outputs.append(bridge(ids))
        for computed in found:
            assert (computed["missing_mass"][:, 1, 3:5] == 1).all()
            assert computed["entropy"][:, 1, 3:5].isnan().all()
            assert computed["full_map"][:, 1, 3:5].nansum() == 0
    assert outputs[0].isfinite().all()
    torch.testing.assert_close(outputs[0], outputs[-1], atol=5e-5, rtol=0)


@pytest.mark.parametrize("path", ["fast", "fallback"])
@pytest.mark.parametrize("pos", [129, 150])
def test_edits_of_long_texts(path: str, pos: int, zoo: Path) -> None:
    # above 128 keys blocks carry hidden extra columns, and edits meet several blocks of rows
    class ScaleAndLook(ScaleFirstKey):
        def edit_scores(self, block: Block) -> None:
            hidden = ~block.visible_keys.expand_as(block.scores)
            assert torch.equal(block.scores.isneginf(), hidden)
            super().edit_scores(block)

    bridge, ids = boot("mistral", zoo), random_ids(pos=pos)
    found: list[Tensor] = []
    with AttentionEngine(
        bridge,
        path=path,
        edits=[ScaleAndLook(), ScalePattern()],
        statistics=dense.factories(2),
        on_layer=lambda i, v, s: found.append(dense.computed(s)["full_map"].nan_to_num().double()),
    ):
        bridge(ids)
    original: list[Tensor] = []
    hooks = [("blocks.0.attn.hook_pattern", lambda p, hook: original.append(p.double()))]
    with bridge.hooks(fwd_hooks=hooks):
        bridge(ids)
    expected = original[0].clone()
    expected[..., 0] *= GAMMA
    expected /= expected.sum(-1, keepdim=True)
    expected[..., 1:] *= SCALE
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


def test_edits_see_only_their_layer(zoo: Path) -> None:
    layers: list[tuple[int, int]] = []

    class Watch:
        def edit_scores(self, block: Block) -> None:
            layers.append((block.shape.layer, block.sequence))

    with AttentionEngine(boot("qwen3_next", zoo), edits=[Watch()]):
        boot("qwen3_next", zoo)(random_ids())
    assert layers == [(3, 0), (3, 1)]


@pytest.mark.parametrize("name", DEAD)
def test_edits_that_cannot_reach_the_output_are_refused(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    with pytest.raises(UnsupportedArchitectureError, match="can be measured but not edited"):
        AttentionEngine(bridge, path="fallback", edits=[ScaleFirstKey()]).__enter__()
    assert not [p for p in bridge.hook_dict.values() if p.fwd_hooks]


def test_opt_is_edited_on_the_fast_path(zoo: Path) -> None:
    # its hooks are dead, but the engine computes its attention itself
    bridge, ids = boot("opt", zoo), random_ids(pos=POS)
    patterns: list[Tensor] = []
    with AttentionEngine(
        bridge,
        edits=[ScaleFirstKey()],
        statistics=dense.factories(2),
        on_layer=lambda i, v, s: patterns.append(dense.computed(s)["full_map"].nan_to_num().double()),
    ):
        bridge(ids)
    original: list[Tensor] = []
    hooks = [("blocks.0.attn.hook_pattern", lambda p, hook: original.append(p.double()))]
    with bridge.hooks(fwd_hooks=hooks):
        bridge(ids)
    expected = original[0].clone()
    expected[..., 0] *= GAMMA
    torch.testing.assert_close(patterns[0], expected / expected.sum(-1, keepdim=True), atol=1e-5, rtol=0)


def test_edits_through_hooks_keep_no_gradients(zoo: Path) -> None:
    bridge = boot("bloom", zoo)
    with (
        torch.enable_grad(),
        pytest.raises(InputError, match="no gradients"),
        AttentionEngine(bridge, path="fallback", edits=[ScalePattern()]),
    ):
        bridge(random_ids())
