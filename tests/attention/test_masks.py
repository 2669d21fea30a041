"""Lazy masks give, block by block, what transformers would build at once; plain ones are left out."""

from typing import Any

import pytest
import torch
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_overlay,
    or_masks,
    packed_sequence_mask_function,
    sdpa_mask,
    sliding_window_overlay,
)
from transformers.masking_utils import sliding_window_overlay as transformers_overlay

from sinklens.attention.masks import LazyMask, lazy_mask

WINDOW = 6
SLIDING = and_masks(sliding_window_overlay(WINDOW), causal_mask_function)


def arguments(q_length: int, kv_length: int, **more: Any) -> dict[str, Any]:
    offset = kv_length - q_length
    return dict(batch_size=2, q_length=q_length, kv_length=kv_length, q_offset=offset, kv_offset=0) | more


def padding(length: int, side: str) -> torch.Tensor:
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, slice(0, 4) if side == "left" else slice(length - 4, length)] = False
    return mask


CASES: dict[str, dict[str, Any]] = {
    "window": arguments(20, 20, mask_function=SLIDING, local_size=WINDOW),
    "cache": arguments(7, 20),
    "window with a cache": arguments(7, 20, mask_function=SLIDING, local_size=WINDOW),
    "left padding": arguments(20, 20, attention_mask=padding(20, "left")),
    "right padding": arguments(20, 20, attention_mask=padding(20, "right")),
    "padded cache": arguments(3, 20, attention_mask=padding(20, "left")),
    "one padded query": arguments(1, 20, attention_mask=padding(20, "left")),
    "packed": arguments(
        12,
        12,
        mask_function=and_masks(
            causal_mask_function,
            packed_sequence_mask_function(torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [1] * 3])),
        ),
    ),
    "sliding cache": arguments(2, 8, q_offset=30, kv_offset=24, mask_function=SLIDING, local_size=WINDOW),
    "unfilled static cache": arguments(4, 32, q_offset=0, allow_is_causal_skip=False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("step", [1, 5, 64])
def test_rows_equal_the_whole_mask(case: str, step: int) -> None:
    given = CASES[case]
    lazy = lazy_mask(**given)
    assert isinstance(lazy, LazyMask)
    full = sdpa_mask(**given | {"allow_is_causal_skip": False})
    assert full is not None
    n = given["q_length"]
    rows = [lazy.rows(start, min(start + step, n)) for start in range(0, n, step)]
    assert torch.equal(torch.cat(rows, 1), full[:, 0])


@pytest.mark.parametrize(
    "plain",
    [
        arguments(20, 20),
        arguments(1, 20),
        arguments(20, 20, attention_mask=torch.ones(2, 20, dtype=torch.bool)),
        arguments(5, 5, mask_function=SLIDING, local_size=WINDOW),  # shorter than the window
    ],
)
def test_plain_causal_calls_need_no_mask(plain: dict[str, Any]) -> None:
    assert lazy_mask(**plain) is None


def test_skipping_is_left_to_those_who_may_not() -> None:
    assert lazy_mask(**arguments(20, 20, allow_is_causal_skip=False)) is not None
    assert lazy_mask(**arguments(20, 20, use_vmap=True)) is not None
    bidirectional = arguments(20, 20, allow_is_bidirectional_skip=True)
    assert lazy_mask(**bidirectional) is not None
    assert lazy_mask(**arguments(WINDOW, WINDOW, mask_function=SLIDING, local_size=WINDOW)) is not None


# ------------------------------------------------------------------ closed forms
def test_masks_of_known_parts_have_a_closed_form() -> None:
    """And no others: what they say equals the whole mask, which is what the engine would otherwise look at."""
    unknown = {"packed", "unfilled static cache"}
    for case, given in CASES.items():
        lazy = lazy_mask(**given)
        assert isinstance(lazy, LazyMask)
        form = lazy.form
        assert (form is None) == (case in unknown), case
        if form is None:
            continue
        q_pos, k_pos = given["q_length"], given["kv_length"]
        rows, keys = torch.arange(k_pos - q_pos, k_pos)[:, None], torch.arange(k_pos)
        seen = (keys <= rows) & (rows - keys < (form.window or k_pos))
        seen = seen[None] & (torch.ones(1, k_pos, dtype=torch.bool) if form.keys is None else form.keys)[:, None]
        full = sdpa_mask(**given | {"allow_is_causal_skip": False})
        assert full is not None
        assert torch.equal(seen.expand(2, -1, -1), full[:, 0]), case
        assert form.alike == bool((full == full[:1]).all())


def test_lookalikes_have_no_closed_form() -> None:
    def sliding_window_overlay(window: int) -> Any:
        return lambda b, h, q, k: k > q - window

    def whatever(b: Any, h: Any, q: Any, k: Any) -> Any:
        return k <= q

    for function in (
        and_masks(sliding_window_overlay(3), causal_mask_function),
        and_masks(causal_mask_function, whatever),
        or_masks(causal_mask_function, SLIDING),
        transformers_overlay(3),  # a window alone hides nothing that comes later
        chunked_overlay(4, torch.zeros(2, dtype=torch.int64)),
    ):
        assert LazyMask(arguments(9, 9, mask_function=function)).form is None
    twice = and_masks(SLIDING, transformers_overlay(4))
    form = LazyMask(arguments(9, 9, mask_function=twice)).form
    assert form is not None and form.window == 4
