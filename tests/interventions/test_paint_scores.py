"""PaintScores against whole patterns, the row constant that it depends on, caches, padding, paths, JSON."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinklens.errors import InputError
from sinklens.interventions import PaintScores
from tests.attention import dense
from tests.families import boot, random_ids
from tests.interventions import invariants, reference
from tests.interventions.invariants import POS, PROMPT
from tests.interventions.planted import edited, stochastic

SOME = ((0, 1), (0, 2), (1, 3))
PAINT = PaintScores(range(3, 9), summary=(12, 13), first_layer=0, heads=SOME)
TOLD = PaintScores(range(3, 9), summary=(12, 13), first_layer=0, heads=SOME, prompt_length=PROMPT)
ALL = PaintScores(range(3, 9), alpha=0.5, first_layer=1, prompt_length=PROMPT)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), alpha=st.floats(0, 1.5), beta=st.floats(0, 1), end=st.integers(8, 30))
def test_scores_are_raised_by_a_share_of_their_size(seed: int, alpha: float, beta: float, end: int) -> None:
    """The planted scores are logarithms of weights, below 0: A^(1 - alpha) before the softmax's division."""
    pattern = stochastic(30, seed)
    method = PaintScores(range(2, 5), alpha, (6,), beta, first_layer=0, prompt_length=end)  # type: ignore[arg-type]
    expected = pattern.clone()
    for row in range(end - 1, 30):
        for key in range(30):
            share = alpha if 2 <= key < 5 else beta if key == 6 else 0.0
            weight = expected[:, row, key]
            expected[:, row, key] = torch.where(weight > 0, weight ** (1 - share), 0)
    after = edited(pattern, method)
    torch.testing.assert_close(after, reference.renormalised(expected), atol=2e-6, rtol=1e-4)
    assert float((after.sum(-1) - 1).abs().max()) < 1e-6
    assert torch.equal(after[:, : end - 1], edited(pattern, PaintScores(2, 0.0, beta=0.0))[:, : end - 1])


def test_a_constant_on_a_row_changes_what_it_does() -> None:
    """The card's check: every other edit of scores is blind to such a constant."""
    pattern, method = stochastic(30, 1), PaintScores(range(3, 9), first_layer=0, prompt_length=20)
    found = [edited(pattern, method, bias=torch.full((1, 2, 30, 1), shift)) for shift in (0.0, 20.0)]
    moved = float((found[1] - found[0])[:, 19:].abs().max())
    assert moved > 0.1 and torch.allclose(found[1][:, :19], found[0][:, :19], atol=1e-5)
    # above 0 a score gains: e^(0.7 s) more weight
    span = pattern[:, -1, 3:9] ** 1.7
    rest = pattern[:, -1].clone()
    rest[:, 3:9] = span * torch.tensor(20 * 0.7).exp()
    torch.testing.assert_close(found[1][:, -1], rest / rest.sum(-1, keepdim=True), atol=1e-4, rtol=1e-3)


def change(layer: int, query: Tensor, key: Tensor, scaling: float) -> Tensor:
    scores = (query @ key.transpose(-1, -2) * scaling).double()
    for head in range(4):
        if (layer, head) in SOME:
            for row in range(PROMPT - 1, POS):
                for place, gain in [*((j, 0.7) for j in range(3, 9)), (12, 0.3), (13, 0.3)]:
                    scores[:, head, row, place] += gain * scores[:, head, row, place].abs()
    return dense.pattern(scores, dense.causal(POS, POS, batch=len(query)))


def test_it_equals_raised_scores_of_a_model(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    hooks: list[tuple[str, Any]] = []
    for layer in range(len(bridge.blocks)):
        kept: dict[str, Tensor] = {}

        def keep(x: Tensor, hook: Any, what: str = "", kept: dict[str, Tensor] = kept) -> None:
            kept[what] = x.double().transpose(1, 2)

        def write(z: Tensor, hook: Any, kept: dict[str, Tensor] = kept, layer: int = layer) -> Tensor:
            repeat = kept["q"].shape[1] // kept["k"].shape[1]
            key = kept["k"].repeat_interleave(repeat, 1)
            pattern = change(layer, kept["q"], key, kept["q"].shape[-1] ** -0.5)
            return dense.output(pattern, kept["v"]).transpose(1, 2).to(z.dtype)

        from functools import partial

        names = {"q": "rot_q", "k": "rot_k", "v": "v"}
        hooks += [(f"blocks.{layer}.attn.hook_{name}", partial(keep, what=what)) for what, name in names.items()]
        hooks.append((f"blocks.{layer}.attn.hook_z", write))
    with bridge.hooks(fwd_hooks=hooks):
        expected = bridge(ids)
    torch.testing.assert_close(reference.under(bridge, TOLD, ids), expected, atol=2e-4, rtol=0)
    assert float((expected - bridge(ids)).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_nothing_raised_changes_no_bit(name: str, zoo: Path) -> None:
    invariants.check_identity(name, PaintScores(range(3, 9), alpha=0.0, beta=0.0, first_layer=0), zoo)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom", "gpt_oss"])
def test_cached_decoding(name: str, zoo: Path) -> None:
    invariants.check_decoding(name, TOLD, zoo, untold=PAINT)


def test_left_padding_does_not_count(zoo: Path) -> None:
    method = PaintScores(range(3, 9), 3.0, first_layer=0)
    for name in ("llama", "gemma2"):
        invariants.check_left_padding(name, method, zoo)
    alone = PaintScores(range(3, 9), 3.0, first_layer=0, prompt_length=PROMPT - 7)
    several = PaintScores(range(3, 9), 3.0, first_layer=0, prompt_length=(PROMPT, PROMPT - 7))
    invariants.check_padded_decoding("llama", several, alone, zoo)


def test_engine_and_hooks_agree(zoo: Path) -> None:
    invariants.check_both_paths("llama", TOLD, zoo)


@pytest.mark.parametrize("method", [PAINT, TOLD, ALL], ids=repr)
def test_json(method: PaintScores) -> None:
    invariants.check_json(method)


def test_a_layer_counted_by_numpy_goes_to_json() -> None:
    counted = PaintScores(range(3, 9), first_layer=np.int64(1))  # type: ignore[arg-type]
    assert PaintScores.from_json(counted.to_json()) == PaintScores(range(3, 9), first_layer=1)  # type: ignore[arg-type]


def test_a_model_without_such_a_layer_is_refused(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    with pytest.raises(InputError, match="first_layer is 2, so nothing would be changed: the model has layers 0 to 1"):
        reference.under(bridge, PaintScores(range(3, 9)), random_ids(pos=POS))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"alpha": -1}, {"beta": True}, {"span": ()}, {"summary": "5"}, {"summary": (5,)}, {"first_layer": -1}],
    ids=str,
)
def test_fields_that_are_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        PaintScores(**({"span": range(5, 12)} | wrong))
