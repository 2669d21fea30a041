"""SetActivations against entries written by hand: named and by rule, caches, padding, means, families."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.capture import capture
from sinklens.errors import InputError
from sinklens.interventions import AblateHeads, Intervention, MaskKeys, SetActivations, mean_activations
from sinklens.interventions.entries import MassiveRule, parse_where
from sinklens.models.tokens import tokenize
from tests.families import boot, checkpoint, padding_mask, random_ids
from tests.interventions import reference
from tests.ties import same_choice

POS = 40
NAMES = ["llama", "gemma2", "gpt2", "opt", "bloom", "gptj", "mamba", "qwen3_next", "deepseek_v3"]
NOTHING = SetActivations([(0, POS, 0)])  # type: ignore[arg-type]
ENTRIES = ((-1, 2, 5), (0, 0, 7), (0, 9, 3), (1, 0, 7))


def point(layer: int) -> str:
    """Where TransformerLens shows the stream after a block, and the embedding's output for -1."""
    return "blocks.0.hook_in" if layer == -1 else f"blocks.{layer}.hook_out"


def by_hand(bridge: TransformerBridge, ids: Tensor, change: Any, layers: Any) -> Tensor:
    """Logits with ``change(layer, hidden)`` in place of the residual stream after each of ``layers``."""

    def at(layer: int) -> tuple[str, Any]:
        return point(layer), lambda x, hook: change(layer, x.clone())

    with bridge.hooks(fwd_hooks=[at(layer) for layer in layers]):
        found: Tensor = bridge(ids)
    return found


def streams(bridge: TransformerBridge, ids: Tensor) -> dict[int, Tensor]:
    """The residual stream by layer."""
    found: dict[int, Tensor] = {}

    def at(layer: int) -> tuple[str, Any]:
        def keep(x: Tensor, hook: Any) -> None:
            found[layer] = x.clone()

        return point(layer), keep

    with bridge.hooks(fwd_hooks=[at(layer) for layer in range(-1, len(bridge.blocks))]):
        bridge(ids)
    return found


def engine(bridge: TransformerBridge, ids: Tensor) -> Tensor:
    """Logits on the path that interventions run on, with nothing changed."""
    return reference.under(bridge, NOTHING, ids)


def own_streams(bridge: TransformerBridge, ids: Tensor) -> dict[int, Tensor]:
    """The same on the path that interventions run on, which rounds otherwise than the bridge."""
    with NOTHING(bridge):
        return streams(bridge, ids)


# ------------------------------------------------------------------ the same numbers as by hand
@pytest.mark.parametrize("name", NAMES)
def test_named_entries_are_set(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)

    def change(layer: int, x: Tensor) -> Tensor:
        for n, (at, position, dim) in enumerate(ENTRIES):
            if at == layer:
                x[:, position, dim] = (0.5, -30.0, 20.0, 0.0)[n]
        return x

    expected = by_hand(bridge, ids, change, (-1, 0, 1))
    method = SetActivations(ENTRIES, (0.5, -30.0, 20.0, 0.0))
    plain = bridge(ids)
    torch.testing.assert_close(reference.under(bridge, method, ids), expected, atol=5e-5, rtol=0)
    assert float((expected - plain).abs().max()) > 1e-2
    assert torch.equal(bridge(ids), plain)


@pytest.mark.parametrize("layer", [-1, 0])
@pytest.mark.parametrize("name", NAMES)
def test_a_rule_sets_every_large_entry(name: str, layer: int, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    hidden = streams(bridge, ids)[layer]
    sizes = hidden[..., [3, 7]].abs().flatten().sort().values
    above = float(sizes[len(sizes) // 2 - 1 : len(sizes) // 2 + 1].mean())  # half of them, none at the bound

    def change(layer: int, x: Tensor) -> Tensor:
        x[..., [3, 7]] = x[..., [3, 7]].where(x[..., [3, 7]].abs() <= above, 0)
        return x

    expected = by_hand(bridge, ids, change, (layer,))
    found = reference.under(bridge, SetActivations(MassiveRule(layer, (3, 7), above)), ids)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)
    assert float((expected - bridge(ids)).abs().max()) > 1e-3


def test_what_is_captured_is_what_was_set(zoo: Path) -> None:
    bridge, batch = boot("llama", zoo), tokenize(boot("llama", zoo), random_ids(pos=POS))
    method = SetActivations([(0, 3, 5)], 700.0)  # type: ignore[arg-type]
    top = {r.layer: r.residual for r in capture(bridge, batch, intervention=method)}
    assert [float(x) for x in top[0].top_value[:, 0]] == [700.0, 700.0]  # type: ignore[union-attr]
    assert top[0].top_position[:, 0].tolist() == [3, 3]  # type: ignore[union-attr]
    assert float(top[-1].top_value.abs().max()) < 100 < float(top[1].top_value.abs().max())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_the_value_that_is_there_changes_no_bit(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(batch=1, pos=POS)
    held = own_streams(bridge, ids)
    for layer in held:
        entries = [(layer, position, dim) for position in (0, 5, 9) for dim in (1, 30)]
        own = torch.stack([held[layer][0, position, dim] for _, position, dim in entries])
        found = reference.under(bridge, SetActivations(entries, own), ids)  # type: ignore[arg-type]
        assert torch.equal(found, engine(bridge, ids))
    torch.testing.assert_close(engine(bridge, ids), bridge(ids), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_the_mean_of_one_entry_changes_no_bit(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(batch=1, pos=POS)
    hidden = own_streams(bridge, ids)[0][0]
    for dim in range(8):
        position = int(hidden[:, dim].abs().argmax())
        rule = MassiveRule(0, (dim,), math.nextafter(float(hidden[position, dim].abs()), 0))
        means = mean_activations(bridge, tokenize(bridge, ids), rule)
        value = float(hidden[position, dim])
        ordinary = float(hidden[1:, dim].double().mean()), float(hidden[0, dim])  # where the rule finds nothing
        expected = (ordinary[1], value) if position else (value, ordinary[0])
        assert means[f"L0D{dim}"] == pytest.approx(expected, rel=1e-6) and value in means[f"L0D{dim}"]
        found = reference.under(bridge, SetActivations(rule, "mean", means), ids)
        assert torch.equal(found, engine(bridge, ids))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
def test_large_is_strict_and_leaves_padding_alone(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(2, 6, 5, generator=generator) * 9).round().to(dtype)
    positions = torch.arange(6) - torch.tensor([[0], [2]])
    above = float(torch.randint(0, 12, (), generator=generator))
    found = MassiveRule(0, (4, 1), above).large(hidden, positions)
    for sequence in range(2):
        for pos in range(6):
            for n, dim in enumerate((4, 1)):
                expected = abs(float(hidden[sequence, pos, dim])) > above and not (sequence == 1 and pos < 2)
                assert bool(found[sequence, pos, n]) == expected


# ------------------------------------------------------------------ caches and padding
RULED = SetActivations(MassiveRule(0, (3, 7), 1.0), 25.0)
NAMED = SetActivations([(0, 0, 7), (1, 33, 2), (-1, 22, 4)], (40.0, -40.0, 30.0))  # type: ignore[arg-type]
WITH_ATTENTION = RULED + MaskKeys(0) + NAMED + AblateHeads(["L1H0"])


@pytest.mark.parametrize("method", [RULED, NAMED, WITH_ATTENTION], ids=["ruled", "named", "with attention"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2", "opt", "bloom"])
def test_cached_decoding_equals_a_full_forward(name: str, method: Intervention, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    full = reference.under(bridge, method, ids)
    assert float((full - bridge(ids)).abs().max()) > 1e-2
    model, cache, parts = bridge.original_model, None, []
    with method(bridge):
        for start, stop in ((0, 22), (22, 23), (23, 24), (24, 31), *((i, i + 1) for i in range(31, POS))):
            out = model(ids[:, start:stop], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-4, rtol=0)


def test_cached_decoding_without_attention(zoo: Path) -> None:
    bridge, ids = boot("mamba", zoo), random_ids(pos=POS)
    method = RULED + NAMED
    full = reference.under(bridge, method, ids)
    model, cache, parts = bridge.original_model, None, []
    with method(bridge):
        for start, stop in ((0, 22), *((i, i + 1) for i in range(22, POS))):
            out = model(ids[:, start:stop], cache_params=cache, use_cache=True)
            cache = out.cache_params
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-4, rtol=0)
    options: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, stop_at_eos=False, verbose=False)
    with method(bridge):
        text = bridge.generate(ids[:1], return_type="tokens", use_past_kv_cache=True, **options)
        same_choice(text[:, POS:], bridge(text)[:, POS - 1 : -1])
    cache = model(ids, use_cache=True).cache_params
    with method(bridge), pytest.raises(InputError, match="begin the text inside"):
        model(ids[:, :1], cache_params=cache, use_cache=True)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt", "bloom"])
def test_left_padding_does_not_count(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    method = SetActivations([(0, 0, 7), (1, 30, 2)], 40.0) + RULED  # type: ignore[arg-type]
    mask = padding_mask(2, POS, 7, "left")
    padded = reference.under(bridge, method, ids, attention_mask=mask)
    alone = reference.under(bridge, method, ids[1:, 7:])
    torch.testing.assert_close(padded[1:, 7:], alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(padded[:1], reference.under(bridge, method, ids[:1]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_generation_and_what_is_left_behind(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(batch=1, pos=20)
    options: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, stop_at_eos=False, verbose=False)
    plain = bridge(ids)
    with WITH_ATTENTION(bridge):
        text = bridge.generate(ids, return_type="tokens", use_past_kv_cache=True, **options)
        logits = bridge(text)
    before = reference.state(bridge)
    same_choice(text[:, 20:], logits[:, 19:-1])
    with pytest.raises(RuntimeError, match="in the middle"), WITH_ATTENTION(bridge):
        bridge(ids)
        raise RuntimeError("in the middle")
    assert reference.same(before, reference.state(bridge))
    assert torch.equal(bridge(ids), plain)


def test_a_later_part_sees_what_an_earlier_one_set(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    first, second = SetActivations([(0, 3, 5)], 300.0), SetActivations(MassiveRule(0, (5,), 200.0), -7.0)  # type: ignore[arg-type]
    found = {}
    for name, method in (("both", first + second), ("swapped", second + first)):
        with method(bridge):
            found[name] = streams(bridge, ids)[0][:, 3, 5]
    assert found["both"].tolist() == [-7.0, -7.0] and found["swapped"].tolist() == [300.0, 300.0]


def test_tensors_that_others_hold_are_left_alone(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    held: list[Tensor] = []
    method = SetActivations([(0, 3, 5)], 300.0)  # type: ignore[arg-type]
    with bridge.hooks(fwd_hooks=[(point(0), lambda x, hook: held.append(x))]), method(bridge):
        bridge(ids)
    assert not (held[0] == 300).any()


# ------------------------------------------------------------------ means
def test_bucketed_means_restore_both_and_a_pooled_mean_does_not(zoo: Path) -> None:
    """Card owen2025, check 2: 500 at position 0 and 1500 at position 9."""
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    rule = MassiveRule(0, (7,), 100.0)

    def plant(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        x[:, 0, 7], x[:, 9, 7] = 500.0, 1500.0
        return x

    with bridge.hooks(fwd_hooks=[(point(0), plant)]):
        means = mean_activations(bridge, tokenize(bridge, ids), rule)
        assert means == {"L0D7": (500.0, 1500.0)}
        planted = engine(bridge, ids)
        bucketed = reference.under(bridge, SetActivations(rule, "mean", means), ids)
        pooled = reference.under(bridge, SetActivations(rule, 1000.0), ids)
        with SetActivations(rule)(bridge):
            emptied = streams(bridge, ids)
    assert torch.equal(bucketed, planted)
    assert float((pooled - planted).abs().max()) > 1e-3
    assert max(float(x.abs().max()) for x in emptied.values()) < 100  # nothing downstream is massive


@pytest.mark.parametrize("name", ["llama", "bloom", "mamba"])
def test_means_are_signed_and_leave_out_padding(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    rows = [random_ids(batch=1, pos=n, seed=n)[0].tolist() for n in (12, 5, 9, 7, 3, 20, 4, 6, 8, 11)]  # two passes
    alone = [streams(bridge, torch.tensor([row]))[0][0].double() for row in rows]
    batch = tokenize(bridge, rows)
    found = mean_activations(bridge, batch, [(0, 0, 3), (0, 8, 3), (0, 10, 3), (0, 7, 2), (0, 39, 4)])
    start = torch.stack([x[0, 3] for x in alone]).mean()
    others = torch.stack([x[p, 3] for x in alone for p in (8, 10) if len(x) > p]).mean()
    assert found["L0D3"] == pytest.approx((float(start), float(others)), rel=1e-4, abs=1e-6)
    assert found["L0D2"][0] is None and found["L0D4"] == (None, None)
    rule = MassiveRule(0, (3, 2), float(alone[0].abs().median()), (5, 6))
    found = mean_activations(bridge, batch, rule)
    for dim, stand_in in ((3, 5), (2, 6)):
        for bucket, part in enumerate((slice(0, 1), slice(1, None))):
            rows_of = [x[part][x[part][:, dim].abs() > rule.above][:, stand_in] for x in alone]
            expected = float(torch.cat(rows_of).mean())
            assert found[f"L0D{stand_in}"][bucket] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_bucket_without_a_large_entry_has_the_channels_ordinary_mean(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    ids = random_ids(batch=3, pos=POS)
    hidden = streams(bridge, ids)[0].double()
    first, rest = hidden[:, 0, 3].abs(), hidden[:, 1:, 3].abs()
    above = float(rest.max())
    ids = ids[first > above] if bool((first > above).any()) else ids
    rule = MassiveRule(0, (3,), above)
    start, others = mean_activations(bridge, tokenize(bridge, ids), rule)["L0D3"]
    kept = streams(bridge, ids)[0].double()
    large = kept[:, 0, 3][kept[:, 0, 3].abs() > above]
    expected = large.mean() if len(large) else kept[:, 0, 3].mean()
    assert start == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    assert others == pytest.approx(float(kept[:, 1:, 3].mean()), rel=1e-4, abs=1e-6)
    assert mean_activations(bridge, tokenize(bridge, ids[:, :1]), rule)["L0D3"][1] is None
    reference.under(bridge, SetActivations(MassiveRule(0, (3,), 0.0), "mean", {"L0D3": (start, others)}), ids)


def test_a_mean_that_is_missing_is_an_error_where_it_is_needed(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    bridge(ids)
    before = reference.state(bridge)
    rule = MassiveRule(0, (3,), 0.0)
    with pytest.raises(InputError, match="no mean of channel L0D3 after position 0"):
        reference.under(bridge, SetActivations(rule, "mean", {"L0D3": (1.0, None)}), ids)
    with pytest.raises(InputError, match="no mean of channel L0D3 at position 0"):
        reference.under(bridge, SetActivations(rule, "mean", {"L0D3": (None, 1.0)}), ids)
    reference.under(bridge, SetActivations(rule, "mean", {"L0D3": (1.0, None)}), ids[:, :1])
    assert reference.same(before, reference.state(bridge))
    with pytest.raises(InputError, match="no mean of channel L0D3 anywhere"):
        SetActivations(rule, "mean", {"L0D3": (None, None)})
    with pytest.raises(InputError, match="no mean of channel L0D3 after position 0"):
        SetActivations([(0, 4, 3)], "mean", {"L0D3": (1.0, None)})  # type: ignore[arg-type]


# ------------------------------------------------------------------ what may be asked for
def test_round_trip_and_equality() -> None:
    rule = MassiveRule(1, (2533, 1415), 100.0, (4, 5))
    ruled = SetActivations(rule, "mean", {"L1D4": (767.6, None), "L1D5": (-458.55, -1502.0)})
    for one in (ruled, NAMED, RULED, SetActivations(rule, (1.0, 2.0)), WITH_ATTENTION):
        assert Intervention.from_json(one.to_json()) == one
        assert Intervention.from_json(one.to_json()).to_json() == one.to_json()
    assert '"where": {"layer": 1, "dims": [2533, 1415], "above": 100.0, "instead": [4, 5]}' in ruled.to_json()
    assert len({ruled, SetActivations(rule, "mean", ruled.means), NAMED}) == 2
    assert SetActivations([[0, 1, 2]], torch.tensor(3.0)) == SetActivations(((0, 1, 2),), 3)  # type: ignore[arg-type]
    assert dict(rule) == {"layer": 1, "dims": (2533, 1415), "above": 100.0, "instead": (4, 5)}
    with pytest.raises(KeyError):
        rule["targets"]


ONE: Any = [(0, 0, 1)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: SetActivations([]),  # type: ignore[arg-type]
        lambda: SetActivations("L0"),  # type: ignore[arg-type]
        lambda: SetActivations([(0, 0)]),  # type: ignore[arg-type,list-item]
        lambda: SetActivations([(0, -1, 0)]),  # type: ignore[arg-type]
        lambda: SetActivations([(-2, 0, 0)]),  # type: ignore[arg-type]
        lambda: SetActivations([(0.5, 0, 0)]),  # type: ignore[arg-type,list-item]
        lambda: SetActivations([(True, 0, 0)]),  # type: ignore[arg-type]
        lambda: SetActivations([*ONE, *ONE]),  # type: ignore[arg-type]
        lambda: SetActivations({"layer": 0}),  # type: ignore[arg-type]
        lambda: SetActivations({"layer": 0, "dims": [1], "above": 1, "below": 2}),  # type: ignore[arg-type]
        lambda: SetActivations(ONE, "median"),  # type: ignore[arg-type]
        lambda: SetActivations(ONE, math.inf),
        lambda: SetActivations(ONE, True),
        lambda: SetActivations(ONE, None),  # type: ignore[arg-type]
        lambda: SetActivations(ONE, (1.0, 2.0)),
        lambda: SetActivations(ONE, "mean"),
        lambda: SetActivations(ONE, "zero", {"L0D1": (0.0, 0.0)}),
        lambda: SetActivations(ONE, "mean", {"L0H1": (0.0, 0.0)}),
        lambda: SetActivations(ONE, "mean", {"L0D1": (math.nan, 0.0)}),
        lambda: SetActivations(ONE, "mean", {"L0D1": 1.0}),  # type: ignore[dict-item]
        lambda: SetActivations(ONE, "mean", {"L0D2": (0.0, 0.0)}),
        lambda: MassiveRule(0, (), 1.0),
        lambda: MassiveRule(0, (1, 1), 1.0),
        lambda: MassiveRule(0, (-1,), 1.0),
        lambda: MassiveRule(0, "12", 1.0),  # type: ignore[arg-type]
        lambda: MassiveRule("0", (1,), 1.0),  # type: ignore[arg-type]
        lambda: MassiveRule(0, (1,), -1.0),
        lambda: MassiveRule(0, (1,), math.nan),
        lambda: MassiveRule(0, (1, 2), 1.0, (3,)),
        lambda: MassiveRule(0, (1, 2), 1.0, (3, 2)),
        lambda: parse_where(3),
    ],
)
def test_fields_that_are_wrong(make: Any) -> None:
    with pytest.raises(InputError):
        make()


def test_what_the_model_has_not(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids()
    for where, problem in (
        ([(2, 0, 0)], "Layer 2 does not exist in this model, which has L0 to L1"),
        ([(1, 0, 32)], "Channel 32 does not exist in this model: d_model is 32"),
        (MassiveRule(0, (3,), 1.0, (99,)), "Channel 99 does not exist"),
    ):
        with pytest.raises(InputError, match=problem):
            reference.under(bridge, SetActivations(where), ids)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=problem):
            mean_activations(bridge, tokenize(bridge, ids), where)


def test_half_precision(zoo: Path) -> None:
    bridge = TransformerBridge.boot_transformers(str(checkpoint("llama", zoo)), device="cpu", dtype=torch.bfloat16)
    ids = random_ids(batch=1, pos=POS)
    own = own_streams(bridge.eval(), ids)[0][0, 4, 5]
    assert own.dtype == torch.bfloat16
    found = reference.under(bridge, SetActivations([(0, 4, 5)], own), ids)  # type: ignore[arg-type]
    assert found.dtype == torch.bfloat16 and torch.equal(found, engine(bridge, ids))


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_on_a_gpu(name: str, zoo: Path) -> None:
    ids = random_ids(pos=POS)
    bridge = TransformerBridge.boot_transformers(str(checkpoint(name, zoo)), device="cuda", dtype=torch.float32).eval()
    for method in (RULED, SetActivations(ENTRIES, 20.0)):
        expected = reference.under(boot(name, zoo), method, ids)
        torch.testing.assert_close(reference.under(bridge, method, ids.cuda()).cpu(), expected, atol=2e-3, rtol=0)
    rule = MassiveRule(0, (3, 7), 1.0)
    means = mean_activations(bridge, tokenize(bridge, ids), rule)
    right = mean_activations(boot(name, zoo), tokenize(boot(name, zoo), ids), rule)
    assert means.keys() == right.keys() and None not in right["L0D3"]
    for channel, expected_means in right.items():
        assert means[channel] == pytest.approx(expected_means, rel=1e-3)
