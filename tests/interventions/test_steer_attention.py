"""PASTA: log(alpha) on scores against weights multiplied and renormalised, spans, the end of the prompt, decoding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinklens.errors import InputError
from sinklens.interventions import SteerAttention
from tests.families import boot, random_ids
from tests.interventions import invariants, reference
from tests.interventions.invariants import POS, PROMPT
from tests.interventions.planted import edited, stochastic
from tests.ties import same_choice

SPAN = (*range(5, 12), 14)
SOME = ((0, 1), (0, 2), (1, 3))
STEER = SteerAttention([range(5, 12), 14], alpha=0.05, heads=SOME)
TOLD = SteerAttention([range(5, 12), 14], alpha=0.05, heads=SOME, prompt_length=PROMPT)
ALL = SteerAttention(range(5, 12))
METHODS = [STEER, TOLD, ALL]


def multiplied(method: SteerAttention, pattern: Tensor) -> Tensor:
    """Weights outside the span multiplied by alpha, then every row renormalised."""
    end = pattern.shape[-1] if method.prompt_length is None else int(method.prompt_length)  # type: ignore[arg-type]
    pattern = pattern.clone()
    for j in range(end):
        if j not in method.span:
            pattern[..., j] *= method.alpha
    return reference.renormalised(pattern)


def change_for(method: SteerAttention) -> Any:
    def change(layer: int, pattern: Tensor) -> Tensor:
        heads = range(4) if method.heads == "all" else [h for at, h in method.heads if at == layer]  # type: ignore[misc]
        pattern = pattern.clone()
        for head in heads:
            pattern[:, head] = multiplied(method, pattern[:, head])
        return pattern

    return change


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom"])
def test_it_equals_multiplied_weights(name: str, method: SteerAttention, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    expected = reference.logits(bridge, name, ids, change_for(method))
    torch.testing.assert_close(reference.under(bridge, method, ids), expected, atol=2e-4, rtol=0)
    assert float((expected - bridge(ids)).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["mistral", "bloom"])
def test_long_texts(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=150)
    method = SteerAttention(range(100, 130), prompt_length=140)
    expected = reference.logits(bridge, name, ids, change_for(method))
    torch.testing.assert_close(reference.under(bridge, method, ids), expected, atol=2e-4, rtol=0)


# ------------------------------------------------------------------ algebra (card attention-steering, checks 1 and 2)
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(3, 40),
    seed=st.integers(0, 999),
    alpha=st.sampled_from([0.01, 0.3, 1.0, 5.0]),
    data=st.data(),
)
def test_scores_and_weights_are_one_edit(n: int, seed: int, alpha: float, data: st.DataObject) -> None:
    pattern = stochastic(n, seed)
    end = data.draw(st.integers(1, n))
    span = data.draw(st.sets(st.integers(0, end - 1), min_size=1))
    method = SteerAttention(sorted(span), alpha=alpha, prompt_length=end)  # type: ignore[arg-type]
    after = edited(pattern, method)
    torch.testing.assert_close(after, multiplied(method, pattern), atol=2e-6, rtol=0)
    assert float((after.sum(-1) - 1).abs().max()) < 1e-6
    if alpha == 1:
        assert torch.equal(after, edited(pattern, SteerAttention(0, alpha=1.0)))
    # generated keys and the span keep their ratios: neither was touched
    kept = [*sorted(span), *range(end, n)]
    ratio = after[:, -1, kept] / pattern[:, -1, kept]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=0, rtol=1e-3)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-20, 20))
def test_a_constant_on_a_row_changes_nothing(seed: int, shift: float) -> None:
    pattern, method = stochastic(30, seed), SteerAttention(range(3, 9))
    bias = shift * torch.randn(1, 2, 30, 1, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(edited(pattern, method, bias=bias), edited(pattern, method), atol=1e-5, rtol=0)


def test_rows_before_the_span_stay(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    before, after = (reference.patterns(bridge, ids, m)[0] for m in (None, ALL))
    torch.testing.assert_close(after[:, :, :5], before[:, :, :5], atol=1e-6, rtol=0)
    assert float((after - before)[:, :, 5:].abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bloom"])
def test_alpha_1_changes_no_bit(name: str, zoo: Path) -> None:
    invariants.check_identity(name, SteerAttention(range(5, 12), alpha=1.0), zoo)


# ------------------------------------------------------------------ several sections
def test_sections_are_one_span(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    sections = SteerAttention([range(5, 8), range(12, 15)], alpha=0.1, prompt_length=PROMPT)
    union = SteerAttention((5, 6, 7, 12, 13, 14), alpha=0.1, prompt_length=PROMPT)
    assert sections == union
    # pastalib's way is one edit after the other: the outside loses alpha twice against generated text
    one_by_one = SteerAttention(range(5, 8), 0.1, prompt_length=PROMPT) + SteerAttention(
        range(12, 15), 0.1, prompt_length=PROMPT
    )
    plain, ours, theirs = (reference.patterns(bridge, ids, m)[0][0, 1, -1] for m in (None, union, one_by_one))
    outside, inside, generated = plain[16], plain[13], plain[30]
    for after, power in ((ours, 1), (theirs, 2)):
        assert abs(float(after[16] / after[30] * generated / outside) - 0.1**power) < 1e-4
        assert abs(float(after[16] / after[13] * inside / outside) - 0.1) < 1e-4
    assert abs(float(ours[13] / ours[30] * generated / inside) - 1.0) < 1e-3
    assert abs(float(theirs[13] / theirs[30] * generated / inside) - 0.1) < 1e-3


# ------------------------------------------------------------------ caches, padding, paths
@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom", "gpt_oss"])
def test_cached_decoding(name: str, zoo: Path) -> None:
    invariants.check_decoding(name, TOLD, zoo, untold=STEER)


def test_generated_tokens_are_never_made_fainter(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    full, told = (reference.under(bridge, method, ids) for method in (STEER, TOLD))
    torch.testing.assert_close(full[:, :PROMPT], told[:, :PROMPT], atol=1e-5, rtol=0)
    assert float((full - told)[:, PROMPT:].abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_left_padding_does_not_count(name: str, zoo: Path) -> None:
    invariants.check_left_padding(name, STEER, zoo)


def test_left_padded_decoding(zoo: Path) -> None:
    alone = SteerAttention(SPAN, alpha=0.05, heads=SOME, prompt_length=PROMPT - 7)
    several = SteerAttention(SPAN, alpha=0.05, heads=SOME, prompt_length=(PROMPT, PROMPT - 7))
    for method in (STEER, several):
        invariants.check_padded_decoding("llama", method, alone, zoo)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_engine_and_hooks_agree(name: str, zoo: Path) -> None:
    invariants.check_both_paths(name, TOLD, zoo)


def test_generation_follows_a_full_pass(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(batch=1, pos=PROMPT)
    options: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, stop_at_eos=False, verbose=False)
    with STEER(bridge):
        text = bridge.generate(ids, return_type="tokens", use_past_kv_cache=True, **options)
    logits = reference.under(bridge, TOLD, text)
    same_choice(text[:, PROMPT:], logits[:, PROMPT - 1 : -1])


# ------------------------------------------------------------------ fields
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_json(method: SteerAttention) -> None:
    invariants.check_json(method)


@pytest.mark.parametrize(
    "wrong",
    [{"alpha": 0}, {"alpha": -1}, {"alpha": True}, {"span": ()}, {"span": "5"}, {"span": -1}, {"prompt_length": 0}],
    ids=str,
)
def test_fields_that_are_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        SteerAttention(**({"span": range(5, 12)} | wrong))


def test_spans_and_caches_that_do_not_fit(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    with pytest.raises(InputError, match="begins at position 50, and the prompt of sequence 0 has 40 tokens"):
        reference.under(bridge, SteerAttention(50), ids)
    cache = bridge.original_model(ids[:, :PROMPT], use_cache=True).past_key_values
    with STEER(bridge), pytest.raises(InputError, match="was not read under the intervention"):
        bridge.original_model(ids[:, PROMPT:], past_key_values=cache)
