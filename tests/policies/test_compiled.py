"""The loops that numba compiles, against torch's operations and plain Python."""

import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from sinklens.attention import compiled as kernel
from sinklens.policies import compiled
from sinklens.policies.blocks import key_blocks, spread_blocks
from sinklens.policies.choose import hide_rest, top_keys
from sinklens.policies.view import View
from tests.families import boot, padding_mask, random_ids
from tests.policies.rules import POS, PROMPT, SMALL
from tests.policies.test_invariants import kept_by, under

pytestmark = pytest.mark.skipif(not kernel.available(), reason="numba is not installed")

NUMBERS = st.sampled_from([-math.inf, -3.0, -1e-30, -0.0, 0.0, 1e-38, 0.5, 1.0, 1.0000001, 7.0, 1e30])


@settings(max_examples=60)
@given(st.lists(st.lists(NUMBERS, min_size=5, max_size=5), min_size=1, max_size=3), st.integers(-1, 6), st.data())
def test_the_largest_are_the_largest_and_never_more(rows: list[list[float]], count: int, data: st.DataObject) -> None:
    flags = st.lists(st.booleans(), min_size=5, max_size=5)
    among = torch.tensor(data.draw(st.lists(flags, min_size=len(rows), max_size=len(rows))))
    taken = top_keys(torch.tensor(rows), count, among)
    for values, may, got in zip(rows, among.tolist(), taken.tolist(), strict=True):
        inside = [v for v, is_taken in zip(values, got, strict=True) if is_taken]
        outside = [v for v, ok, is_taken in zip(values, may, got, strict=True) if ok and not is_taken]
        assert len(inside) == min(max(count, 0), sum(may))
        assert not any(is_taken and not ok for is_taken, ok in zip(got, may, strict=True))
        assert not inside or not outside or min(inside) >= max(outside)


def test_of_many_numbers_the_same_are_taken_as_torch_takes() -> None:
    values = torch.randn(7, 3001, generator=torch.Generator().manual_seed(0))
    values[3] *= 1e20
    values[4, ::2] = -math.inf
    among = torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    for count in (1, 2, 255, 256, 2000, 3001):
        best = values.masked_fill(~among, -math.inf).topk(count, -1).values[:, -1:]
        found = top_keys(values, count, among)
        finite = (best != -math.inf).expand_as(found)
        assert torch.equal(found[finite], (among & (values >= best))[finite]), count
        assert int(found.sum(-1).max()) <= count


def view_of(scores: Tensor, before: int, first: int) -> View:
    """Rows whose text begins after ``before`` columns, or at a later position where older keys are gone."""
    keys = torch.arange(scores.shape[-1]) + (first if first else -before)
    return View(0, 2, scores, keys[-scores.shape[1] :], keys, tuple(range(len(scores))), len(scores), len(scores))


@pytest.mark.parametrize(("before", "first"), [(0, 0), (3, 0), (0, 5), (40, 0)])
@pytest.mark.parametrize("by", ["mean", "max"])
def test_blocks_of_keys(before: int, first: int, by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(2, 9, 33, generator=torch.Generator().manual_seed(2))
    scores = scores.masked_fill(torch.rand(scores.shape, generator=torch.Generator().manual_seed(3)) < 0.4, -math.inf)
    view = view_of(scores, before, first)
    found = key_blocks(view, 4, by)
    wide = spread_blocks(found[1], view, 4)
    for column, position in enumerate(view.keys.tolist()):
        expected = found[1][..., position // 4] if position >= 0 else torch.zeros(2, 9, dtype=torch.bool)
        assert torch.equal(wide[..., column], expected)
    for number in range(found[0].shape[-1]):
        inside = (view.keys >= 0) & (view.keys // 4 == number)
        for head in range(2):
            for row in range(9):
                seen = scores[head, row, inside]
                seen = seen[seen != -math.inf]
                expected = (seen.mean() if by == "mean" else seen.max()) if len(seen) else torch.tensor(-math.inf)
                torch.testing.assert_close(found[0][head, row, number], expected)
    monkeypatch.setattr(kernel, "available", lambda: False)
    for one, other in zip(found, key_blocks(view, 4, by), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_what_is_not_kept_is_hidden(shared: bool, elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(4)).tril(2)
    scores[scores == 0] = -math.inf
    kept = torch.rand(1 if shared else 3, 5, 8, generator=torch.Generator().manual_seed(5)) > 0.6
    kept[:, 1] = False
    outs = [torch.empty_like(scores) if elsewhere else scores.clone() for _ in range(2)]
    given = [scores if elsewhere else out for out in outs]
    empty = hide_rest(given[0], kept, outs[0])
    monkeypatch.setattr(kernel, "available", lambda: False)
    assert torch.equal(empty, hide_rest(given[1], kept, outs[1])) and bool(empty.any()) and not bool(empty.all())
    assert torch.equal(outs[0], scores.masked_fill(~kept, -math.inf)) and torch.equal(*outs)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("padded", [True, False])
def test_every_rule_is_the_same_in_torch_alone(
    name: str, padded: bool, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    options = {"attention_mask": padding_mask(2, POS, 7, "left")} if padded else {}
    fast = under(bridge, SMALL[name], ids, **options), kept_by(SMALL[name], bridge, ids, **options).of()
    monkeypatch.setattr(kernel, "available", lambda: False)
    slow = under(bridge, SMALL[name], ids, **options), kept_by(SMALL[name], bridge, ids, **options).of()
    torch.testing.assert_close(fast[0], slow[0], atol=1e-4, rtol=0)
    assert all(torch.equal(fast[1][layer], slow[1][layer]) for layer in slow[1])


def test_only_fp32_on_a_cpu_is_taken() -> None:
    x = torch.zeros(2)
    assert compiled.takes(x) and not compiled.takes(x.double()) and not compiled.takes(x.bfloat16())
    assert not compiled.takes(torch.zeros(2, requires_grad=True)) and not compiled.takes(torch.zeros(2, device="meta"))
    assert np.float32(math.e) == compiled.E and PROMPT < POS
