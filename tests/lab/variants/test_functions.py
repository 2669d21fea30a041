"""Each variant's formula against a slow oracle, the identities between variants, and what shifts do."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinklens.lab.variants.attention import alibi, rotate, visible_keys
from sinklens.lab.variants.catalogue import VARIANTS, AttentionInputs
from sinklens.lab.variants.outputs import element_gate, head_gate, kv_bias
from sinklens.lab.variants.weights import (
    clipped_softmax,
    elu_linear,
    k_bias,
    power_softmax,
    proxy,
    relu,
    sigmoid,
    sigmoid_normalised,
    sink_logit,
    softmax,
    softmax_off_by_one,
    softplus_reweighted,
)

POS, D_HEAD, HEADS = 7, 6, 2
CLOSE = {"atol": 1e-6, "rtol": 1e-5}
seeds = st.integers(0, 10_000)


def inputs(seed: int, visible: Tensor | None = None, scale: float = 2.0) -> AttentionInputs:
    draw = torch.Generator().manual_seed(seed)
    query, key = (scale * torch.randn(2, HEADS, POS, D_HEAD, generator=draw) for _ in range(2))
    learned = {
        "sink_logit": torch.randn(HEADS, generator=draw),
        "bias_key": torch.randn(HEADS, D_HEAD, generator=draw),
        "bias_value": torch.randn(HEADS, D_HEAD, generator=draw),
    }
    return AttentionInputs(query, key, visible_keys(POS) if visible is None else visible, learned=learned)


def oracle(name: str, x: AttentionInputs) -> Tensor:
    """Weights on the real keys by the formula as it is printed, one row at a time, in double precision."""
    out = torch.zeros(x.scores.shape, dtype=torch.float64)
    for b, h, i in itertools.product(range(2), range(HEADS), range(POS)):
        keys = x.visible[i].nonzero().squeeze(1)
        q, k = x.query[b, h, i].double(), x.key[b, h, keys].double()
        s, n = (k @ q) / math.sqrt(D_HEAD), len(keys)
        own = (x.learned["bias_key"][h].double() @ q) / math.sqrt(D_HEAD)
        phi = lambda z: torch.where(z > 0, z + 1, z.exp())  # noqa: E731
        share = s.exp() / s.exp().sum()
        if name == "softplus-reweighted":
            cosine = (k @ q) / (k.norm(dim=-1) * q.norm())
            first = (1 + (math.log(D_HEAD) * math.log(n) * cosine).exp()).log()
            row = (n * first / first.sum() - float(n > 3)).clamp(min=0) ** 3
        else:
            row = {
                "softmax1": s.exp() / (1 + s.exp().sum()),
                "sink-logit": s.exp() / (x.learned["sink_logit"][h].double().exp() + s.exp().sum()),
                "k-bias": s.exp() / (own.exp() + s.exp().sum()),
                "kv-bias": s.exp() / (own.exp() + s.exp().sum()),
                "relu": s.clamp(min=0) / n,
                "sigmoid": 1 / (1 + (-s).exp()),
                "sigmoid-norm": 1 / (1 + (-s).exp()),
                "power-softmax": s**4,
                "elu-linear": phi(k) @ phi(q),
                "elu-linear-free": phi(k) @ phi(q) / math.sqrt(D_HEAD),
                "clipped-softmax": (1.03 * share - 0.03).clamp(0, 1),
            }.get(name, share)
        if VARIANTS[name].row_sum == "one":
            row = row / row.sum()
        out[b, h, i, keys] = row
    return out


def real(weights: Tensor) -> Tensor:
    return weights[..., -POS:]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("visible", [visible_keys(POS), visible_keys(POS, window=3, prefix=2)])
def test_weights_are_those_of_the_printed_formula(name: str, visible: Tensor) -> None:
    x = inputs(3, visible)
    torch.testing.assert_close(real(VARIANTS[name].weights(x)).double(), oracle(name, x), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=10)
@given(seed=seeds)
def test_rows_sum_to_what_the_catalogue_says_and_hidden_keys_get_nothing(name: str, seed: int) -> None:
    x = inputs(seed)
    weights = real(VARIANTS[name].weights(x))
    total, kind = weights.sum(-1), VARIANTS[name].row_sum
    assert bool((weights >= 0).all()) and not weights[..., ~x.visible].any()
    if kind == "one":
        torch.testing.assert_close(total, torch.ones_like(total), **CLOSE)
    elif kind == "at most one":
        assert bool((total <= 1 + 1e-6).all()) and bool((total < 0.999).any())
    else:
        assert bool((total - 1).abs().max() > 0.1)


@pytest.mark.parametrize("name", VARIANTS)
def test_later_keys_change_no_earlier_row(name: str) -> None:
    x = inputs(5)
    key = x.key.clone()
    key[:, :, 4:] += 1.0
    other = AttentionInputs(x.query, key, x.visible, learned=x.learned)
    before, after = (real(VARIANTS[name].weights(y)) for y in (x, other))
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.allclose(before[:, :, 4:], after[:, :, 4:])


@settings(max_examples=20)
@given(seed=seeds, shift=st.floats(-4, 4))
def test_only_a_softmax_over_the_sequence_alone_ignores_a_shift(seed: int, shift: float) -> None:
    x = inputs(seed)
    for function in (softmax, clipped_softmax):
        torch.testing.assert_close(function(x.scores + shift, x.visible), function(x.scores, x.visible), **CLOSE)
    scale = 1 + shift**2
    torch.testing.assert_close(
        power_softmax(x.scores * scale, x.visible), power_softmax(x.scores, x.visible), atol=1e-5, rtol=1e-3
    )


@pytest.mark.parametrize("function", [softmax_off_by_one, relu, sigmoid, sigmoid_normalised, power_softmax])
def test_the_others_do_not_ignore_it(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = inputs(0)
    assert not torch.allclose(function(x.scores + 1, x.visible), function(x.scores, x.visible), atol=1e-3)


def test_off_by_one_is_a_token_of_zeros_before_the_sequence_with_its_gradient() -> None:
    gradients = []
    for prepended in (False, True):
        x = inputs(1)
        query, key = x.query.clone().requires_grad_(), x.key.clone().requires_grad_()
        value = torch.randn(2, HEADS, POS, D_HEAD, generator=torch.Generator().manual_seed(9), requires_grad=True)
        if prepended:
            nothing = torch.zeros(2, HEADS, 1, D_HEAD)
            keys, values = torch.cat([nothing, key], 2), torch.cat([nothing, value], 2)
            visible = torch.nn.functional.pad(x.visible, (1, 0), value=True)
            output = softmax(AttentionInputs(query, keys, visible).scores, visible) @ values
        else:
            output = softmax_off_by_one(AttentionInputs(query, key, x.visible).scores, x.visible) @ value
        output.square().sum().backward()
        gradients.append((output.detach(), query.grad, key.grad, value.grad))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@settings(max_examples=20)
@given(seed=seeds)
def test_identities_between_escape_hatches(seed: int) -> None:
    x = inputs(seed)
    value = torch.randn(2, HEADS, POS, D_HEAD, generator=torch.Generator().manual_seed(seed))
    plain, off_by_one = softmax(x.scores, x.visible), softmax_off_by_one(x.scores, x.visible)
    zero, low = torch.zeros(2, HEADS, POS), torch.full((2, HEADS, POS), -1e4)
    same = torch.testing.assert_close
    same(sink_logit(x.scores, x.visible, torch.zeros(HEADS)), off_by_one, **CLOSE)
    same(sink_logit(x.scores, x.visible, torch.full((HEADS,), -1e4)), plain, **CLOSE)
    same(k_bias(x.scores, x.visible, zero)[..., 1:], off_by_one, **CLOSE)
    same(k_bias(x.scores, x.visible, low)[..., 1:], plain, **CLOSE)
    full = k_bias(x.scores, x.visible, x.bias_scores)
    same(full.sum(-1), torch.ones(2, HEADS, POS), **CLOSE)
    same(kv_bias(full, value, torch.zeros(HEADS, D_HEAD)), full[..., 1:] @ value, **CLOSE)
    same(kv_bias(k_bias(x.scores, x.visible, zero), value, torch.zeros(HEADS, D_HEAD)), off_by_one @ value, **CLOSE)
    same(kv_bias(k_bias(x.scores, x.visible, low), value, x.learned["bias_value"]), plain @ value, **CLOSE)
    extra = x.learned["bias_value"][:, None].expand(2, HEADS, 1, D_HEAD)
    same(kv_bias(full, value, x.learned["bias_value"]), full @ torch.cat([extra, value], 2), **CLOSE)


def test_scores_far_out_stay_finite() -> None:
    visible = visible_keys(POS)
    for size in (1e4, -1e4):
        scores = torch.full((1, 1, POS, POS), size)
        expected = torch.full((1, 1, POS), float(size > 0))
        torch.testing.assert_close(softmax_off_by_one(scores, visible).sum(-1), expected)
        for function in (softmax, sigmoid_normalised, power_softmax):
            torch.testing.assert_close(function(scores, visible).sum(-1), torch.ones(1, 1, POS))
        assert sigmoid(scores, visible).isfinite().all()


def test_stretching_upwards_gives_hidden_keys_nothing() -> None:
    x = inputs(0)
    stretched = clipped_softmax(x.scores, x.visible, zeta=1.0, gamma=0.1)
    assert not stretched[..., ~x.visible].any() and bool((stretched[..., x.visible] >= 0.1).all())


def test_the_gap_formula() -> None:
    scores = torch.zeros(1, 1, 1000, 1000)
    scores[..., 0] = 10.0
    assert softmax(scores, visible_keys(1000))[0, 0, -1, 0].item() == pytest.approx(0.9566, abs=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: power_softmax(torch.zeros_like(x.scores), x.visible),
        lambda x: softplus_reweighted(torch.ones_like(x.query), torch.ones_like(x.key), x.visible)[:, :, 3:],
        lambda x: relu(-x.scores.abs(), x.visible),
    ],
)
def test_a_row_that_nothing_stands_out_of_is_zero_and_its_gradient_finite(make: Callable[..., Tensor]) -> None:
    assert not make(inputs(0)).any()
    query = torch.ones(1, 1, POS, D_HEAD, requires_grad=True)
    softplus_reweighted(query, torch.ones(1, 1, POS, D_HEAD), visible_keys(POS)).square().sum().backward()
    assert query.grad is not None and query.grad.isfinite().all()


def test_gates_halve_at_zero_open_at_infinity_and_agree_when_tied() -> None:
    output = torch.randn(2, HEADS, POS, D_HEAD, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(2, HEADS, POS, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head_gate(output, torch.zeros_like(logits)), output / 2)
    torch.testing.assert_close(element_gate(output, torch.full_like(output, 50.0)), output, **CLOSE)
    torch.testing.assert_close(element_gate(output, logits[..., None].expand_as(output)), head_gate(output, logits))


def test_proxy_scores_are_shares_of_size() -> None:
    weights = torch.tensor([[[[0.2, 0.0], [-3.0, 1.0]]]])
    torch.testing.assert_close(proxy(weights), torch.tensor([[[[1.0, 0.0], [0.75, 0.25]]]]))
    assert not proxy(torch.zeros(1, 1, 2, 2)).any()


def test_linear_attention_is_the_running_sum_it_stands_for() -> None:
    x = inputs(2)
    value = torch.randn(2, HEADS, POS, D_HEAD, generator=torch.Generator().manual_seed(0))
    phi_q, phi_k = (torch.nn.functional.elu(y) + 1 for y in (x.query, x.key))
    state = torch.einsum("bhkd,bhke->bhkde", phi_k, value).cumsum(2)
    norm = phi_k.cumsum(2)
    recurrent = torch.einsum("bhkd,bhkde->bhke", phi_q, state) / torch.einsum("bhkd,bhkd->bhk", phi_q, norm)[..., None]
    torch.testing.assert_close(elu_linear(x.query, x.key, x.visible) @ value, recurrent, **CLOSE)


def test_rotation_knows_distances_alone_and_keeps_norms() -> None:
    x = torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(1, 1, 9, 8)
    y = torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(1)).expand(1, 1, 9, 8)
    products = rotate(x)[0, 0] @ rotate(y)[0, 0].T
    for offset in range(-8, 9):
        diagonal = products.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), **CLOSE)
    assert not torch.allclose(products[8, 0], products[0, 0], atol=1e-3)
    for channel in range(4):
        unit = torch.zeros(1, 1, 6, 8)
        unit[..., channel] = 1.0
        angle = 5 * 10_000 ** (-channel / 4)
        turned = rotate(unit)[0, 0, 5]
        assert turned[channel].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert turned[channel + 4].item() == pytest.approx(math.sin(angle), abs=1e-6)
    torch.testing.assert_close(rotate(x).norm(dim=-1), x.norm(dim=-1))


def test_masks_and_biases() -> None:
    assert visible_keys(5, window=2).sum(-1).tolist() == [1, 2, 2, 2, 2]
    assert visible_keys(5, window=2, prefix=1).sum(-1).tolist() == [1, 2, 3, 3, 3]
    assert torch.equal(visible_keys(4, prefix=3)[0], torch.tensor([True, True, True, False]))
    bias = alibi(2, 3)
    assert bias[0, 2, 0].item() == -2 * 2**-4 and bias[1, 2, 0].item() == -2 * 2**-8
