"""VAR: which tokens are sinks, which rows are edited, how much moves where, and decoding."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.interventions import RedistributeAttention, find_sink_dims
from sinklens.interventions.sink_dims import channel_ratios
from sinklens.models.tokens import tokenize
from tests.families import boot, random_ids
from tests.interventions import invariants, reference
from tests.interventions.invariants import POS, PROMPT
from tests.interventions.planted import edited, stochastic

LOOSE: dict[str, Any] = dict(rho=0.3, min_mass=0.1, first_layer=0, spare_last=False)
EVERY: dict[str, Any] = dict(rho=0.0, min_mass=0.0, first_layer=0, spare_last=False, from_row=0)
DIMS, TAU = (3, 17), 1.6
GIVEN = RedistributeAttention([range(5, 12), 14], sinks=(0, 6, 16), heads=((0, 1), (0, 2), (1, 3)), **LOOSE)
FOUND = RedistributeAttention(range(5, 15), sink_dims=DIMS, tau=TAU, p=0.5, **LOOSE)
TOLD = RedistributeAttention(range(5, 15), sink_dims=DIMS, tau=TAU, p=0.5, prompt_length=PROMPT, **LOOSE)


# ------------------------------------------------------------------ the slow way
def redistributed(method: RedistributeAttention, row: np.ndarray, i: int, sinks: set[int]) -> np.ndarray:
    """One row by the card's formula."""
    target = [j for j in method.target if j < len(row)]
    beside = [j for j in target if j not in sinks]
    on_target, on_beside = row[target].sum(), row[beside].sum()
    first = max(method.target) + 1 if method.from_row is None else method.from_row
    out = row.copy()
    if i >= first and on_target >= method.min_mass and on_beside >= method.rho * on_target and on_beside > 1e-30:
        taken = [j for j in sinks if j < len(row)]
        moved = method.p * row[taken].sum()
        out[taken] *= 1 - method.p
        out[beside] += moved * row[beside] / on_beside
    return out


def by_hand(bridge: TransformerBridge, name: str, ids: Tensor, method: RedistributeAttention) -> Tensor:
    """Logits with every pattern redistributed row by row, sinks by a loop over tokens."""
    entered: dict[int, np.ndarray] = {}
    prompt = ids.shape[1] if method.prompt_length is None else int(method.prompt_length)  # type: ignore[arg-type]

    def keep(hidden: Tensor, hook: Any) -> None:
        entered[int(str(hook.name).split(".")[1])] = hidden.double().numpy()

    def change(layer: int, pattern: Tensor) -> Tensor:
        pattern = pattern.clone()
        heads = range(4) if method.heads == "all" else [h for at, h in method.heads if at == layer]  # type: ignore[misc]
        for sequence in range(len(ids)):
            sinks = set(method.sinks or ())
            for j, x in enumerate(entered[layer][sequence][:prompt]) if method.sink_dims else ():
                rms = np.sqrt((x**2).mean() + 1e-6)
                if max(abs(x[d]) / rms for d in method.sink_dims or ()) > method.tau:
                    sinks.add(j)
            for head in heads:
                for i in range(ids.shape[1]):
                    row = pattern[sequence, head, i].numpy()
                    pattern[sequence, head, i] = torch.from_numpy(redistributed(method, row, i, sinks))
        return pattern

    with ExitStack() as stack:
        hooks = [(f"blocks.{layer}.hook_in", keep) for layer in range(len(bridge.blocks))]
        stack.enter_context(bridge.hooks(fwd_hooks=hooks))
        return reference.logits(bridge, name, ids, change)


@pytest.mark.parametrize("method", [GIVEN, FOUND, TOLD], ids=["given", "found", "told"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom"])
def test_it_equals_loops_over_whole_patterns(name: str, method: RedistributeAttention, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    expected = by_hand(bridge, name, ids, method)
    torch.testing.assert_close(reference.under(bridge, method, ids), expected, atol=2e-4, rtol=0)
    assert float((expected - bridge(ids)).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["mistral", "bloom"])
def test_long_texts(name: str, zoo: Path) -> None:
    # blocks of rows follow each other and carry hidden extra columns
    bridge, ids = boot(name, zoo), random_ids(batch=1, pos=150)
    method = RedistributeAttention(range(100, 130), sink_dims=DIMS, tau=TAU, from_row=0, **LOOSE)
    expected = by_hand(bridge, name, ids, method)
    torch.testing.assert_close(reference.under(bridge, method, ids), expected, atol=2e-4, rtol=0)


# ------------------------------------------------------------------ what moves (card var-visual-sink, check 3)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), p=st.sampled_from([0.0, 0.3, 0.5, 0.6, 1.0]))
def test_the_moved_mass(seed: int, p: float) -> None:
    pattern, sinks = stochastic(80, seed), (0, 25, 40)
    options: dict[str, Any] = EVERY | {"from_row": 60}
    before = edited(pattern, RedistributeAttention(range(20, 60), sinks=sinks, p=0, **options))
    after = edited(pattern, RedistributeAttention(range(20, 60), sinks=sinks, p=p, **options))
    assert float((after.sum(-1) - 1).abs().max()) < 1e-6
    assert torch.equal(after[:, :60], before[:, :60])
    receivers = [j for j in range(20, 60) if j not in sinks]
    others = [j for j in range(80) if j not in (*receivers, *sinks)]
    assert torch.equal(after[..., others], before[..., others])
    lost = (before - after)[:, 60:, list(sinks)]
    torch.testing.assert_close(lost, p * before[:, 60:, list(sinks)], atol=1e-6, rtol=0)
    gained = (after - before)[:, 60:, receivers].sum(-1)
    torch.testing.assert_close(gained, p * before[:, 60:, list(sinks)].sum(-1), atol=2e-6, rtol=0)
    ratio = after[:, 60:, receivers] / before[:, 60:, receivers]
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), atol=0, rtol=1e-4)
    if p == 0:
        assert torch.equal(after, before)


def test_the_released_codes_p_is_the_other_portion() -> None:
    pattern, sinks = stochastic(80, 1), [0, 25, 40]

    def as_released(p: float) -> Tensor:  # sinks *= p, the rest of their weight is the budget
        out, receivers = pattern.clone(), [j for j in range(20, 60) if j not in sinks]
        out[:, 60:, sinks] *= p
        budget = (1 - p) * pattern[:, 60:, sinks].sum(-1, keepdim=True)
        own = pattern[:, 60:, receivers]
        out[:, 60:, receivers] += budget * own / own.sum(-1, keepdim=True)
        return out

    for p in (0.3, 0.5, 0.6):
        options: dict[str, Any] = EVERY | {"from_row": 60, "sinks": sinks}
        same = edited(pattern, RedistributeAttention(range(20, 60), p=p, **options))
        other = edited(pattern, RedistributeAttention(range(20, 60), p=1 - p, **options))
        torch.testing.assert_close(other, as_released(p), atol=2e-6, rtol=0)
        assert (float((same - as_released(p)).abs().max()) < 2e-6) == (p == 0.5)


# ------------------------------------------------------------------ which rows (check 4)
def two_masses(masses: list[float], beside: list[float]) -> Tensor:
    """Rows of 10 keys: weight on the target (keys 2 to 5), a share of it off the sink (key 3), the rest on key 0."""
    pattern = torch.eye(10)[None].clone()
    for row, (mass, share) in enumerate(zip(masses, beside, strict=True), start=7):
        pattern[0, row] = 0
        pattern[0, row, [2, 4, 5]] = mass * share / 3
        pattern[0, row, 3] = mass * (1 - share)
        pattern[0, row, 0] = 1 - mass
    return pattern


def changed_rows(method: RedistributeAttention, pattern: Tensor) -> list[int]:
    rows = (edited(pattern, method) - pattern).abs().amax((0, 2)) > 1e-3
    return rows.nonzero().flatten().tolist()


def test_rows_are_chosen_one_by_one() -> None:
    options: dict[str, Any] = dict(sinks=(0, 3), first_layer=0)
    default = RedistributeAttention(range(2, 6), **options)
    assert changed_rows(default, two_masses([0.21, 0.19, 0.5], [0.9, 0.9, 0.9])) == [7, 9]
    assert changed_rows(default, two_masses([0.5, 0.5, 0.5], [0.79, 0.81, 0.2])) == [8]
    # the released rho is the largest share of the sinks: 0.2 there is 0.8 here
    assert changed_rows(
        RedistributeAttention(range(2, 6), rho=0.5, **options), two_masses([0.5] * 3, [0.6, 0.4, 1])
    ) == [7, 9]
    late = RedistributeAttention(range(2, 6), from_row=8, **options)
    assert changed_rows(late, two_masses([0.5] * 3, [0.9] * 3)) == [8, 9]


def test_rows_from_the_target_on() -> None:
    pattern = stochastic(20, 3)
    method = RedistributeAttention(range(2, 9), sinks=0, rho=0, min_mass=0, first_layer=0)
    assert changed_rows(method, pattern) == list(range(9, 20))
    assert changed_rows(RedistributeAttention(range(2, 9), sinks=0, **EVERY), pattern) == list(range(2, 20))


def test_heads_choose_by_themselves() -> None:
    strong, weak = two_masses([0.5] * 3, [0.9] * 3), two_masses([0.1] * 3, [0.9] * 3)
    after = edited(torch.cat([strong, weak]), RedistributeAttention(range(2, 6), sinks=(0, 3), first_layer=0))
    torch.testing.assert_close(after[1], weak[0], atol=1e-6, rtol=0)
    assert abs(float(after[0, 9, 0]) - 0.4 * 0.5) < 1e-6


# ------------------------------------------------------------------ which layers (check 5)
@pytest.mark.parametrize(
    ("fields", "edited_layers"), [({}, [1]), ({"first_layer": 0}, [0, 1]), ({"spare_last": False}, [1, 2])]
)
def test_first_layers_and_the_last_are_spared(fields: dict[str, Any], edited_layers: list[int], zoo: Path) -> None:
    bridge, ids = boot("gemma3", zoo), random_ids(pos=POS)
    seen = []
    for layer in range(3):  # one layer's heads at a time, so that the other layers' input is the plain one
        options: dict[str, Any] = dict(sinks=(0, 6), rho=0.0, min_mass=0.0, heads=[(layer, head) for head in range(4)])
        method = RedistributeAttention(range(5, 15), **options, **({"first_layer": 1} | fields))
        before, after = (reference.patterns(bridge, ids, m)[layer] for m in (None, method))
        if not torch.equal(before, after):
            seen.append(layer)
    assert seen == edited_layers


def test_a_model_without_a_layer_to_edit_is_refused(zoo: Path) -> None:
    for name, sentence in (("llama", "the model has 2, edited"), ("gemma2", "from 2 on but not the last")):
        with pytest.raises(InputError, match=sentence):
            reference.under(boot(name, zoo), RedistributeAttention(range(5, 15), sinks=0), random_ids())


def test_the_last_layer_is_exempt_bit_for_bit(zoo: Path) -> None:
    # editing only the last layer is editing nothing when that is spared
    bridge, ids = boot("gemma2", zoo), random_ids(pos=POS)
    heads = [(2, head) for head in range(4)]
    options: dict[str, Any] = dict(sinks=(0, 6), rho=0.0, min_mass=0.0, heads=heads, first_layer=1)
    plain = invariants.on_path(bridge, RedistributeAttention(range(5, 15), p=0, **options), "fast", ids)
    assert torch.equal(reference.under(bridge, RedistributeAttention(range(5, 15), **options), ids), plain)
    edited_too = RedistributeAttention(range(5, 15), spare_last=False, **options)
    assert float((reference.under(bridge, edited_too, ids) - plain).abs().max()) > 1e-2


# ------------------------------------------------------------------ identity, caches, padding, paths
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bloom"])
@pytest.mark.parametrize("sinks", [{"sinks": (0, 6)}, {"sink_dims": DIMS, "tau": 0.0}], ids=str)
def test_p_0_changes_no_bit(name: str, sinks: dict[str, Any], zoo: Path) -> None:
    invariants.check_identity(name, RedistributeAttention(range(5, 15), p=0, **sinks, **EVERY), zoo)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom", "gpt_oss"])
def test_cached_decoding(name: str, zoo: Path) -> None:
    invariants.check_decoding(name, TOLD, zoo, untold=FOUND)
    invariants.check_decoding(name, GIVEN, zoo)


def test_new_tokens_are_never_sinks(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    full, told = (reference.under(bridge, method, ids) for method in (FOUND, TOLD))
    torch.testing.assert_close(
        full[:, :PROMPT], told[:, :PROMPT], atol=1e-5, rtol=0
    )  # sinks do not depend on later text
    assert float((full - told)[:, PROMPT:].abs().max()) > 1e-2


def test_a_prompt_in_pieces(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    found = invariants.decoded(bridge, TOLD, ids, (3, 9, 10, PROMPT + 4, POS))
    torch.testing.assert_close(found, reference.under(bridge, TOLD, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_left_padding_does_not_count(name: str, zoo: Path) -> None:
    invariants.check_left_padding(name, FOUND, zoo)
    invariants.check_left_padding(name, GIVEN, zoo)


def test_left_padded_decoding(zoo: Path) -> None:
    options: dict[str, Any] = dict(sink_dims=DIMS, tau=TAU, p=0.5, **LOOSE)
    alone = RedistributeAttention(range(5, 15), prompt_length=PROMPT - 7, **options)
    several = RedistributeAttention(range(5, 15), prompt_length=(PROMPT, PROMPT - 7), **options)
    for method in (FOUND, several):
        invariants.check_padded_decoding("llama", method, alone, zoo)


@pytest.mark.parametrize("method", [GIVEN, FOUND], ids=["given", "found"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_engine_and_hooks_agree(name: str, method: RedistributeAttention, zoo: Path) -> None:
    invariants.check_both_paths(name, method, zoo)


def test_everything_is_restored(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    plain = bridge(ids)
    before = reference.state(bridge)
    reference.under(bridge, FOUND + FOUND, ids)
    with pytest.raises(RuntimeError, match="in the middle"), FOUND(bridge):
        bridge(ids)
        raise RuntimeError("in the middle")
    assert reference.same(before, reference.state(bridge))
    assert torch.equal(bridge(ids), plain)


def test_caches_of_other_texts_are_refused(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    cache = bridge.original_model(ids[:, :PROMPT], use_cache=True).past_key_values
    for method in (FOUND, TOLD):
        with method(bridge), pytest.raises(InputError, match=r"has not seen|run it inside"):
            bridge.original_model(ids[:, PROMPT:], past_key_values=cache)


# ------------------------------------------------------------------ sink dimensions (checks 1 and 2)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_ratios_by_hand_and_without_scale(seed: int, scale: float) -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed)) + 0.5
    rms = np.sqrt((x.numpy().astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6)
    torch.testing.assert_close(channel_ratios(x).double(), torch.from_numpy(np.abs(x.numpy()) / rms), atol=1e-5, rtol=0)
    torch.testing.assert_close(channel_ratios(scale * x), channel_ratios(x), atol=0, rtol=1e-4)
    assert float(channel_ratios(x).max()) <= 8


def plant(bridge: TransformerBridge, dim: int, first: int, last: int, size: float = 50.0) -> Any:
    """Hooks that add ``size`` times the RMS to a dimension at position 0 of what enters some layers."""

    def write(hidden: Tensor, hook: Any) -> Tensor | None:
        layer = int(str(hook.name).split(".")[1])
        if not first <= layer <= last:
            return None
        hidden = hidden.clone()
        hidden[:, 0, dim] += size * hidden[:, 0].pow(2).mean(-1).sqrt()
        return hidden

    return bridge.hooks(fwd_hooks=[(lambda name: bool(re.fullmatch(r"blocks\.\d+\.hook_in", name)), write)])


def test_planted_dimensions_are_found_and_no_others(zoo: Path) -> None:
    bridge = boot("qwen3_next", zoo)  # four layers: the middle ones are 2 and 3
    batch = tokenize(bridge, [list(range(5, 25)), list(range(60, 70)), [7, 8]])
    assert find_sink_dims(bridge, batch) == ()
    limit = 5.0  # 32 dimensions: the largest ratio there is is sqrt(32) = 5.7
    for size in (1, 2):
        assert find_sink_dims(bridge, batch, min_ratio=limit, batch_size=size) == ()
        with plant(bridge, 21, 2, 3):
            assert find_sink_dims(bridge, batch, min_ratio=limit, batch_size=size) == (21,)
            assert find_sink_dims(bridge, batch) == ()
    with plant(bridge, 9, 3, 3):
        assert find_sink_dims(bridge, batch, min_ratio=limit) == (9,)  # half of the middle layers
        assert find_sink_dims(bridge, batch, min_ratio=limit, min_share=0.51) == ()
    with plant(bridge, 4, 2, 2), plant(bridge, 30, 3, 3):
        assert find_sink_dims(bridge, batch, min_ratio=limit) == (4, 30)


def test_the_bound_on_the_ratio_is_met_exactly(zoo: Path) -> None:
    bridge = boot("gemma2", zoo)  # three layers: the only middle one is 2
    batch, entered = tokenize(bridge, [[5, 6, 7], [8, 9]]), []
    with bridge.hooks(fwd_hooks=[("blocks.2.hook_in", lambda x, hook: entered.append(channel_ratios(x[:, 0])))]):
        bridge(batch.ids)
    ratios = entered[0].mean(0)  # over the sequences
    limit = float(ratios.sort().values[-4:-2].mean())
    assert find_sink_dims(bridge, batch, min_ratio=limit) == tuple((ratios > limit).nonzero().flatten().tolist())
    assert find_sink_dims(bridge, batch, min_ratio=1.001 * float(ratios.max())) == ()
    assert find_sink_dims(bridge, batch, min_ratio=0.999 * float(ratios.max())) == (int(ratios.argmax()),)


def test_sink_dims_of_small_models_are_refused(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    with pytest.raises(InputError, match="the model has 2 layers"):
        find_sink_dims(bridge, tokenize(bridge, [[5, 6, 7]]))
    bridge = boot("gemma2", zoo)
    for wrong in ({"min_ratio": 0}, {"min_share": 0}, {"min_share": 1.1}, {"batch_size": 0}):
        with pytest.raises(InputError, match=r"Expected min_ratio|batch_size must be at least 1"):
            find_sink_dims(bridge, tokenize(bridge, [[5, 6, 7]]), **wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------ fields
@pytest.mark.parametrize("method", [GIVEN, FOUND, TOLD], ids=["given", "found", "told"])
def test_json(method: RedistributeAttention) -> None:
    invariants.check_json(method)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"sinks": 0, "sink_dims": 3},
        {"sinks": -1},
        {"sinks": ()},
        {"sinks": 0, "target": "abc"},
        {"sinks": 0, "target": []},
        {"sinks": 0, "target": [range(3, 3)]},
        {"sinks": 0, "target": [(3, 5)]},
        {"sinks": 0, "p": 1.5},
        {"sinks": 0, "rho": -0.1},
        {"sinks": 0, "min_mass": "0.2"},
        {"sinks": 0, "tau": float("inf")},
        {"sinks": 0, "from_row": -1},
        {"sinks": 0, "first_layer": None},
        {"sinks": 0, "spare_last": 1},
    ],
    ids=str,
)
def test_fields_that_are_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        RedistributeAttention(**({"target": range(5, 15)} | wrong))


def test_dimensions_that_the_model_has_not(zoo: Path) -> None:
    method = RedistributeAttention(range(5, 15), sink_dims=(3, 32), **LOOSE)
    with pytest.raises(InputError, match="names dimension 32; the residual stream has 32"):
        reference.under(boot("llama", zoo), method, random_ids())
