"""What must hold for every pattern: merging, order of heads and sequences, shared keys and values."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinklens.attention import AttentionCall, AttentionShape, Block, Statistic, StatisticFactory
from sinklens.attention.kernel import attend
from tests.attention import dense

HEADS, D = 4, 6
seeds = st.integers(0, 2**16)


class Spread(Statistic):
    """Hands every block to one of several sets of statistics, as two workers would share a call's rows."""

    def __init__(self, shape: AttentionShape, parts: Sequence[Sequence[Statistic]], choices: Sequence[int]) -> None:
        super().__init__(shape)
        self.parts, self.choices, self.count = parts, choices, 0

    def see(self, block: Block) -> None:
        for statistic in self.parts[self.choices[self.count % len(self.choices)]]:
            statistic.see(block)
        self.count += 1

    def update(self, block: Block) -> None:
        raise AssertionError("see() hands blocks on")

    def compute(self) -> dict[str, Tensor]:
        return {}


def draw_call(seed: int, q_pos: int, k_pos: int | None = None, kv_heads: int = HEADS) -> AttentionCall:
    generator = torch.Generator().manual_seed(seed)
    k_pos = k_pos or q_pos
    query, key, value = (
        torch.randn(2, heads, pos, D, generator=generator)
        for heads, pos in ((HEADS, q_pos), (kv_heads, k_pos), (kv_heads, k_pos))
    )
    real = torch.ones(2, q_pos, dtype=torch.bool)
    real[1, q_pos - seed % q_pos :] = False
    return AttentionCall(0, 3 * query, key, value, D**-0.5, real=real)


def makers_for(call: AttentionCall) -> list[StatisticFactory]:
    return dense.factories(2, {"first": torch.arange(call.key.shape[2]).expand(2, -1) == 0})


def measure(call: AttentionCall) -> dict[str, Tensor]:
    statistics = dense.make(makers_for(call), call.shape)
    attend(call, statistics)
    return dense.computed(statistics)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name],
            value,
            atol=tolerance,
            rtol=tolerance,
            equal_nan=True,
            msg=lambda m, name=name: f"{name}: {m}",
        )


@settings(max_examples=40)
@given(
    seed=seeds,
    pos=st.integers(1, 40),
    rows=st.integers(1, 16),
    several_heads=st.booleans(),
    choices=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    order=st.permutations(range(3)),
)
def test_rows_measured_apart_merge_to_the_whole(
    seed: int, pos: int, rows: int, several_heads: bool, choices: list[int], order: list[int]
) -> None:
    call = draw_call(seed, pos)
    makers = makers_for(call)
    parts = [dense.make(makers, call.shape) for _ in range(3)]
    blocks = {"rows_per_block": rows, "block_bytes": 1 << 20 if several_heads else 1}
    attend(call, [Spread(call.shape, parts, choices)], **blocks)
    whole = dense.make(makers, call.shape)
    attend(call, whole, **blocks)
    first, second, third = (parts[index] for index in order)
    left = [dense.make(makers, call.shape) for _ in range(2)]
    for a, b, c, x, y in zip(first, second, third, *left, strict=True):
        y.merge(b), y.merge(c)  # a + (b + c)
        x.merge(a), x.merge(y)
        a.merge(b), a.merge(c)  # (a + b) + c
    expected = dense.computed(whole)
    assert_same(dense.computed(first), expected)
    assert_same(dense.computed(left[0]), expected)


@pytest.mark.parametrize("pos", [150, 300])
def test_long_calls_merge(pos: int) -> None:
    # cells of several tokens: the display maps of two parts touch at cell borders only
    call = draw_call(pos, pos)
    makers = makers_for(call)
    parts = [dense.make(makers, call.shape) for _ in range(2)]
    attend(call, [Spread(call.shape, parts, [0, 1, 1, 0])], rows_per_block=12)
    for a, b in zip(*parts, strict=True):
        a.merge(b)
    assert_same(dense.computed(parts[0]), measure(call), 1e-4)


@settings(max_examples=25)
@given(seed=seeds, pos=st.integers(1, 30), order=st.permutations(range(HEADS)))
def test_permuting_heads_permutes_results(seed: int, pos: int, order: list[int]) -> None:
    call = draw_call(seed, pos)
    permuted = dataclasses.replace(call, **{name: getattr(call, name)[:, order] for name in ("query", "key", "value")})
    expected = {name: value if value.ndim == 2 else value[:, order] for name, value in measure(call).items()}
    assert_same(measure(permuted), expected, 1e-5)


@settings(max_examples=25)
@given(seed=seeds, pos=st.integers(1, 30), kv_heads=st.sampled_from([1, 2]))
def test_shared_keys_and_values_equal_copies_of_them(seed: int, pos: int, kv_heads: int) -> None:
    call = draw_call(seed, pos, kv_heads=kv_heads)
    copies = {name: getattr(call, name).repeat_interleave(HEADS // kv_heads, 1) for name in ("key", "value")}
    expanded = dataclasses.replace(call, **copies)
    assert_same(measure(call), measure(expanded), 1e-5)
    torch.testing.assert_close(attend(call), attend(expanded), atol=1e-6, rtol=1e-6)


@settings(max_examples=25)
@given(seed=seeds, pos=st.integers(1, 30))
def test_swapping_sequences_swaps_results(seed: int, pos: int) -> None:
    call = draw_call(seed, pos)
    names = ("query", "key", "value", "real")
    swapped = dataclasses.replace(call, **{name: getattr(call, name).flip(0) for name in names})
    expected = {name: value.flip(0) for name, value in measure(call).items()}
    assert_same(measure(swapped), expected, 1e-5)


@settings(max_examples=25)
@given(seed=seeds, k_pos=st.integers(2, 60), q_pos=st.integers(1, 20))
def test_the_last_queries_with_a_cache_equal_those_of_the_whole(seed: int, k_pos: int, q_pos: int) -> None:
    q_pos = min(q_pos, k_pos)
    whole = dataclasses.replace(draw_call(seed, k_pos), real=None)
    last = dataclasses.replace(whole, query=whole.query[:, :, -q_pos:])
    torch.testing.assert_close(attend(last), attend(whole)[:, :, -q_pos:], atol=1e-6, rtol=1e-6)
    found, expected = measure(last), measure(whole)
    for name in ("entropy", "distance", "top_weight", "missing_mass", "mass_first"):
        torch.testing.assert_close(found[name], expected[name][..., -q_pos:], atol=1e-5, rtol=1e-5)


@settings(max_examples=25)
@given(seed=seeds, pos=st.integers(1, 60), sink=st.booleans())
def test_mass_is_conserved(seed: int, pos: int, sink: bool) -> None:
    call = draw_call(seed, pos)
    call = dataclasses.replace(call, sink_logits=torch.tensor([0.0, 1.0, -2.0, 5.0]) if sink else None)
    found, real = measure(call), call.real
    assert real is not None
    given_out = found["mass"].sum(-1) + found["missing_mass"].nan_to_num().sum(-1)
    expected = real.sum(-1, keepdim=True).float().expand_as(given_out)
    torch.testing.assert_close(given_out, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found["null_mass"].sum(-1), expected[:, 0], atol=1e-4, rtol=1e-5)
    entropy, bound = found["entropy"], found["entropy_null"][:, None]
    assert (entropy.isnan() | ((entropy >= 0) & (entropy <= bound + 1e-5))).all()
