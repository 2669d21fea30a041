"""EditValues against values replaced by hand: GQA, soft cap, latent attention, hooks, caches, padding."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionCall, AttentionEngine, Statistic
from sinklens.attention.kernel import attend
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions import AblateHeads, EditValues, Intervention, MaskKeys, ScaleKeys, mean_values
from sinklens.interventions.edit_values import parse_kv_head, parse_kv_heads
from sinklens.interventions.positions import Positions
from sinklens.models.tokens import tokenize
from tests.attention import dense
from tests.families import FAMILIES, boot, checkpoint, padding_mask, random_ids
from tests.interventions import reference
from tests.ties import same_choice

POS = 40
NAMES = ["llama", "gemma2", "gpt2", "opt", "gpt_oss", "bloom", "falcon", "mpt"]
DELEGATING = ["gptj", "gpt_neo", "codegen"]


def values_of(bridge: TransformerBridge, ids: Tensor, path: str = "fast") -> dict[int, Tensor]:
    """Value states [batch kv_head pos d_value] of every layer."""
    found: dict[int, Tensor] = {}

    def keep(layer: int, value: Tensor, statistics: list[Statistic]) -> None:
        found[layer] = value.clone()

    with AttentionEngine(bridge, path=path, on_layer=keep):
        bridge(ids)
    return found


def path_of(name: str) -> str:
    return "fallback" if FAMILIES[name].path == "fallback" else "fast"


def by_hand(bridge: TransformerBridge, name: str, ids: Tensor, method: EditValues) -> Tensor:
    """Logits with every head's output written as ``pattern @ edited value``, in fp64 by TransformerLens hooks."""
    hooks: list[tuple[str, Any]] = []
    for layer in FAMILIES[name].attention_layers:
        kept: dict[str, Tensor] = {}

        def keep(x: Tensor, hook: Any, what: str, kept: dict[str, Tensor] = kept) -> None:
            kept[what] = x.double()

        def write(z: Tensor, hook: Any, kept: dict[str, Tensor] = kept, layer: int = layer) -> Tensor:
            pattern = kept["pattern"] if name != "opt" else reference.opt_pattern(kept["q"], kept["k"])
            value = kept["v"].transpose(1, 2).clone()
            for head in range(value.shape[1]):
                if method.kv_heads == "all" or f"L{layer}KV{head}" in method.kv_heads:
                    for key in method.keys:
                        mean = (method.means or {}).get(f"L{layer}KV{head}")
                        value[:, head, key] = 0 if mean is None else torch.tensor(mean).double()
            return dense.output(pattern, value).transpose(1, 2).to(z.dtype)

        hooks += [(f"blocks.{layer}.attn.hook_{x}", partial(keep, what=x)) for x in ("q", "k", "v", "pattern")]
        hooks.append((f"blocks.{layer}.attn.hook_z", write))
    with bridge.hooks(fwd_hooks=hooks):
        found: Tensor = bridge(ids)
    return found


@pytest.mark.parametrize("kv_heads", ["all", ["L0KV0", "L1KV1"]])
@pytest.mark.parametrize("to", ["zero", "mean"])
@pytest.mark.parametrize("name", NAMES)
def test_values_equal_replaced_ones(name: str, to: Any, kv_heads: Any, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    if name == "falcon" and kv_heads != "all":
        kv_heads = ["L1KV0"]  # multi-query: one KV head
    means = None if to == "zero" else mean_values(bridge, tokenize(bridge, random_ids(seed=7)))
    method = EditValues((0, 3), to, kv_heads, means)
    plain = bridge(ids)
    expected = by_hand(bridge, name, ids, method)
    torch.testing.assert_close(reference.under(bridge, method, ids), expected, atol=1e-4, rtol=0)
    assert float((expected - plain).abs().max()) > 1e-2
    assert torch.equal(bridge(ids), plain)


@pytest.mark.parametrize("name", DELEGATING)
def test_values_of_attention_that_the_bridge_hands_on(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    method = EditValues(0, kv_heads=["L1KV2"])

    def silence(v: Tensor, hook: Any) -> Tensor:
        v = v.clone()
        v[:, 0, 2] = 0
        return v

    with bridge.hooks(fwd_hooks=[("blocks.1.attn.hook_v", silence)]):
        expected = bridge(ids)
    torch.testing.assert_close(reference.under(bridge, method, ids), expected, atol=5e-5, rtol=0)
    # key 0 is all that row 0 sees, so its output of that head is gone
    rows = []
    with bridge.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: rows.append(z.clone()))]), method(bridge):
        bridge(ids)
    assert not rows[0][:, 0, 2].any()
    assert rows[0][:, 0, [0, 1, 3]].any() and rows[0][:, 1, 2].any()


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_both_paths_agree(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    method, logits = EditValues((0, 5), kv_heads=["L0KV1", "L1KV0"]), []
    for path in ("fast", "fallback"):
        positions = Positions()
        with positions.watch(bridge), AttentionEngine(bridge, path=path, edits=[*method.edits(positions)]):
            logits.append(bridge(ids))
    torch.testing.assert_close(logits[0], logits[1], atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_weights_stay_in_the_first_layer(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    before, after = reference.patterns(bridge, ids), reference.patterns(bridge, ids, EditValues(0))
    assert torch.equal(before[0], after[0])
    assert float((before[1] - after[1]).abs().max()) > 1e-3


def test_a_kv_head_is_read_by_its_group_alone(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    z: list[Tensor] = []
    hook = [("blocks.0.attn.hook_z", lambda x, hook: z.append(x.clone()))]
    with bridge.hooks(fwd_hooks=hook):
        with EditValues(0, kv_heads=["L0KV1"])(bridge):
            bridge(ids)
        with ScaleKeys(0, 1.0)(bridge):
            bridge(ids)
    edited, plain = (x.unflatten(-1, (4, -1)) if x.ndim == 3 else x for x in z)
    same = [torch.equal(edited[:, :, head], plain[:, :, head]) for head in range(4)]
    assert same == [True, True, False, False]


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_its_own_value_put_back_is_bit_for_bit_nothing(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(batch=1, pos=POS)
    values = values_of(bridge, ids, path_of(name))[0]
    means = {f"L0KV{head}": values[0, head, 4].tolist() for head in range(values.shape[1])}
    method = EditValues(4, "mean", list(means), means)  # type: ignore[arg-type]
    unchanged = reference.under(bridge, EditValues(POS), ids)
    assert torch.equal(reference.under(bridge, method, ids), unchanged)
    torch.testing.assert_close(unchanged, bridge(ids), atol=5e-5, rtol=0)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]), st.sets(st.integers(0, 11), min_size=1, max_size=12))
def test_the_change_is_the_weight_times_the_difference(seed: int, kv_heads: int, keys: set[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, 12, 8, generator=generator)
    k, v = torch.randn(2, 2, kv_heads, 12, 8, generator=generator).unbind(0)
    call = AttentionCall(0, q, k, v, 1.0)
    new = torch.randn(8, generator=generator)
    means = {f"L0KV{kv_heads - 1}": new.tolist()}
    method = EditValues(tuple(keys), "mean", [*means], means)  # type: ignore[arg-type]
    edited = v.clone()
    method.edits(Positions())[0].edit_values(call.shape, edited)
    found = attend(AttentionCall(0, q, k, edited, 1.0)) - attend(call)
    pattern = dense.pattern(dense.scores(call), dense.causal(12, 12, batch=2))
    expected = torch.zeros(2, 4, 12, 8, dtype=torch.float64)
    for head in range(4 - 4 // kv_heads, 4):
        for key in keys:
            expected[:, head] += pattern[:, head, :, key, None] * (new - v[:, -1, key, :])[:, None]
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    others = [key for key in range(12) if key not in keys]
    assert torch.equal(edited[:, :, others], v[:, :, others])


def test_zeroed_values_are_a_mask_without_renormalising(zoo: Path) -> None:
    # z with key 0 hidden is (z - a_0 v_0) / (1 - a_0): what is left of z once v_0 is 0, over the rest of the row
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    weight = reference.patterns(bridge, ids)[0][..., 0]
    z: list[Tensor] = []
    hook = [("blocks.0.attn.hook_z", lambda x, hook: z.append(x.double().reshape(2, POS, 4, 8).transpose(1, 2)))]
    with bridge.hooks(fwd_hooks=hook):
        for method in (EditValues(0), MaskKeys(0)):
            reference.under(bridge, method, ids)
    left = (1 - weight)[:, :, 1:, None]
    torch.testing.assert_close(z[0][:, :, 1:], z[1][:, :, 1:] * left, atol=1e-5, rtol=0)


# ------------------------------------------------------------------ caches and padding
METHODS = [EditValues((0, 3)), EditValues((0, 30), kv_heads=["L0KV0"]) + ScaleKeys(0, 3.0) + AblateHeads(["L1H0"])]


@pytest.mark.parametrize("method", METHODS, ids=["alone", "composed"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2", "gpt_oss", "deepseek_v3", "bloom", "falcon"])
def test_cached_decoding_equals_a_full_forward(name: str, method: Intervention, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    full = reference.under(bridge, method, ids)
    assert float((full - bridge(ids)).abs().max()) > 1e-2
    torch.testing.assert_close(decoded(bridge, method, ids), full, atol=1e-4, rtol=0)


def test_cached_decoding_beside_linear_attention(zoo: Path) -> None:
    bridge, ids = boot("qwen3_next", zoo), random_ids(pos=POS)
    method = EditValues((0, 30))
    torch.testing.assert_close(decoded(bridge, method, ids), reference.under(bridge, method, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", DELEGATING)
def test_cached_decoding_of_attention_that_the_bridge_hands_on(name: str, zoo: Path) -> None:
    bridge, ids, method = boot(name, zoo), random_ids(pos=POS), EditValues((0, 30))
    torch.testing.assert_close(decoded(bridge, method, ids), reference.under(bridge, method, ids), atol=1e-4, rtol=0)


def decoded(bridge: TransformerBridge, method: Intervention, ids: Tensor, **first: Any) -> Tensor:
    """Logits of the text in pieces through a growing cache; beyond the windows of 16, whose caches drop keys."""
    model, cache, parts = bridge.original_model, None, []
    with method(bridge):
        for start, stop in ((0, 22), (22, 23), (23, 24), (24, 31), *((i, i + 1) for i in range(31, ids.shape[1]))):
            options = {name: mask[:, :stop] for name, mask in first.items()}
            out = model(ids[:, start:stop], past_key_values=cache, use_cache=True, **options)
            cache = out.past_key_values
            parts.append(out.logits)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt", "bloom"])
def test_left_padding_does_not_count(name: str, zoo: Path) -> None:
    bridge, ids, method = boot(name, zoo), random_ids(pos=POS), EditValues((0, 5))
    mask = padding_mask(2, POS, 7, "left")
    padded = reference.under(bridge, method, ids, attention_mask=mask)
    alone = reference.under(bridge, method, ids[1:, 7:])
    torch.testing.assert_close(padded[1:, 7:], alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(padded[:1], reference.under(bridge, method, ids[:1]), atol=1e-4, rtol=0)


def test_left_padding_in_cached_decoding(zoo: Path) -> None:
    bridge, ids, method = boot("llama", zoo), random_ids(pos=POS), EditValues((0, 26))
    mask = padding_mask(2, POS, 7, "left")
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    model, cache, parts = bridge.original_model, None, []
    with method(bridge):
        for start, stop in ((0, 22), (22, 31), *((i, i + 1) for i in range(31, POS))):
            options = dict(attention_mask=mask[:, :stop], position_ids=positions[:, start:stop])
            out = model(ids[:, start:stop], past_key_values=cache, use_cache=True, **options)
            cache = out.past_key_values
            parts.append(out.logits)
    alone = reference.under(bridge, method, ids[1:, 7:])
    torch.testing.assert_close(torch.cat(parts, 1)[1:, 7:], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_generation_and_what_is_left_behind(name: str, zoo: Path) -> None:
    bridge, ids, method = boot(name, zoo), random_ids(batch=1, pos=20), EditValues(0)
    options: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, stop_at_eos=False, verbose=False)
    plain = bridge(ids)
    with method(bridge):
        text = bridge.generate(ids, return_type="tokens", use_past_kv_cache=True, **options)
        logits = bridge(text)
    before = reference.state(bridge)
    same_choice(text[:, 20:], logits[:, 19:-1])
    with pytest.raises(RuntimeError, match="in the middle"), method(bridge):
        bridge(ids)
        raise RuntimeError("in the middle")
    assert reference.same(before, reference.state(bridge))
    assert torch.equal(bridge(ids), plain)


def test_a_cache_from_outside_is_edited_on_the_fast_path(zoo: Path) -> None:
    bridge, ids, method = boot("llama", zoo), random_ids(pos=POS), EditValues(0, kv_heads=["L1KV0"])
    model = bridge.original_model
    cache = model(ids[:, :-1], use_cache=True).past_key_values
    held = cache.layers[1].values.clone()
    with method(bridge):
        last = model(ids[:, -1:], past_key_values=cache, use_cache=True).logits
    # the edit of the last layer's values only: earlier rows do not matter for the last one
    torch.testing.assert_close(last[:, 0], reference.under(bridge, method, ids)[:, -1], atol=1e-4, rtol=0)
    assert torch.equal(cache.layers[1].values[:, :, : POS - 1], held)


# ------------------------------------------------------------------ means
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "deepseek_v3", "bloom", "gptj"])
def test_mean_values_leave_out_the_start_special_tokens_and_padding(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    rows = [[5, 0, *range(6, 30)], list(range(60, 80))]  # 0 is <s>
    batch = tokenize(bridge, rows)
    means = mean_values(bridge, batch)
    values = values_of(bridge, batch.ids, path_of(name))
    assert sorted(means) == sorted(f"L{layer}KV{h}" for layer, v in values.items() for h in range(v.shape[1]))
    expected = torch.cat([values[1][0, -1, 2:26], values[1][1, -1, 1:20]]).double().mean(0)
    found = torch.tensor(means[f"L1KV{values[1].shape[1] - 1}"]).double()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    everything = mean_values(bridge, batch, tokens=torch.ones_like(batch.real))
    expected = torch.cat([values[1][0, 0, :26], values[1][1, 0, :20]]).double().mean(0)
    torch.testing.assert_close(torch.tensor(everything["L1KV0"]).double(), expected, atol=1e-6, rtol=1e-5)


def test_references_that_are_none(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    with pytest.raises(InputError, match="No token is left"):
        mean_values(bridge, tokenize(bridge, [[7], [9]]))
    with pytest.raises(InputError, match=r"must say for \(1, 3\) positions"):
        mean_values(bridge, tokenize(bridge, [[7, 8, 9]]), tokens=torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(UnsupportedArchitectureError, match="no values to average"):
        mean_values(boot("mamba", zoo), tokenize(boot("mamba", zoo), [[5, 6, 7]]))
    with pytest.raises(UnsupportedArchitectureError, match="has none"):
        reference.under(boot("mamba", zoo), EditValues(0), random_ids())


# ------------------------------------------------------------------ what may be asked for
def test_round_trip_and_names() -> None:
    method = EditValues((3, 0), "mean", "L1KV1, L0KV0", {"L0KV0": [0.5, -1.25], "L1KV1": [1, 2]})
    assert method.kv_heads == ("L0KV0", "L1KV1") and method.keys == (0, 3)
    both = method + EditValues(0, kv_heads=["L10KV2", "L9KV3"])  # type: ignore[arg-type]
    for one in (method, EditValues(0), both):
        assert Intervention.from_json(one.to_json()) == one
    assert '"kv_heads": ["L9KV3", "L10KV2"]' in both.to_json()
    assert hash(method) == hash(EditValues((0, 3), "mean", ("L0KV0", "L1KV1"), {"L0KV0": [1.0], "L1KV1": [0.0]}))
    assert parse_kv_head(" l5kv11 ") == (5, 11)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EditValues(0, "one"),  # type: ignore[arg-type]
        lambda: EditValues(0, "mean"),
        lambda: EditValues(0, "zero", means={"L0KV0": [0.0]}),
        lambda: EditValues(-1),
        lambda: EditValues(0, kv_heads=["L0H0"]),  # type: ignore[arg-type]
        lambda: EditValues(0, kv_heads=[(0, 0)]),  # type: ignore[arg-type]
        lambda: EditValues(0, kv_heads=3),  # type: ignore[arg-type]
        lambda: EditValues(0, kv_heads=()),
        lambda: EditValues(0, "mean", means={"L0KV0": [math.nan]}),
        lambda: EditValues(0, "mean", means={"L0KV0": 1.0}),  # type: ignore[dict-item]
        lambda: EditValues(0, "mean", means={"L0H0": [1.0]}),
        lambda: parse_kv_heads([]),
    ],
)
def test_fields_that_are_wrong(make: Any) -> None:
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize(
    ("name", "method", "problem"),
    [
        ("llama", EditValues(0, kv_heads=["L2KV0"]), "which has the layers L0 to L1"),  # type: ignore[arg-type]
        ("llama", EditValues(0, kv_heads=["L1KV2"]), "layer 1 has 2 KV heads, KV0 to KV1"),  # type: ignore[arg-type]
        ("bloom", EditValues(0, kv_heads=["L1KV4"]), "layer 1 has 4 KV heads"),  # type: ignore[arg-type]
        ("qwen3_next", EditValues(0, kv_heads=["L0KV0"]), "layer 0 has no softmax"),  # type: ignore[arg-type]
        ("llama", EditValues(0, "mean", means={"L0KV0": [0.0] * 8}), "no value of L1KV0"),
        ("llama", EditValues(0, "mean", means={"L0KV0": [0.0] * 8, "L1KV0": [0.0] * 8}), "no value of L0KV1"),
        ("llama", EditValues(0, "mean", ("L0KV0",), {"L0KV0": [0.0] * 3}), "has 3 numbers, its values have 8"),
    ],
)
def test_what_the_model_has_not(name: str, method: EditValues, problem: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    bridge(random_ids())
    before = reference.state(bridge)
    with pytest.raises(InputError, match=problem):
        reference.under(bridge, method, random_ids())
    assert reference.same(before, reference.state(bridge))


def test_half_precision(zoo: Path) -> None:
    bridge = TransformerBridge.boot_transformers(str(checkpoint("llama", zoo)), device="cpu", dtype=torch.bfloat16)
    bridge.eval()
    batch = tokenize(bridge, random_ids(pos=POS))
    method = EditValues(0, "mean", means=mean_values(bridge, batch))
    logits = reference.under(bridge, method, batch.ids)
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_on_a_gpu(name: str, zoo: Path) -> None:
    ids = random_ids(pos=POS)
    bridge = TransformerBridge.boot_transformers(str(checkpoint(name, zoo)), device="cuda", dtype=torch.float32).eval()
    batch = tokenize(bridge, ids)
    method = EditValues((0, 3), "mean", means=mean_values(bridge, batch))
    expected = reference.under(boot(name, zoo), method, ids)
    torch.testing.assert_close(reference.under(bridge, method, ids.cuda()).cpu(), expected, atol=2e-3, rtol=0)
