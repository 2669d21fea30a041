"""What all interventions share: names of heads, composition, JSON, restoring the model, padding, caches, bf16."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, Block
from sinklens.errors import InputError
from sinklens.interventions import AblateHeads, Intervention, MaskKeys, ScaleKeys, SlidingWindow
from sinklens.interventions.base import Composition
from sinklens.interventions.heads import parse_head, parse_heads
from tests.families import boot, checkpoint, padding_mask, random_ids
from tests.interventions import reference
from tests.ties import same_choice

POS = 40
SEVERAL = ScaleKeys((0, 3), 0.3) + SlidingWindow(9, sinks=1) + AblateHeads(["L1H0"]) + AblateHeads(["L0H2"], "uniform")
ALL = [
    ScaleKeys((0, 3), 0.3, heads=["L1H0", (0, 2)]),
    MaskKeys(0, spare_self=False),
    SlidingWindow(5, sinks=2),
    AblateHeads(["L1H0"]),
    AblateHeads("all", "uniform"),
    AblateHeads(["L0H0"], "mean", {"L0H0": [0.5, -1.25]}),
    SEVERAL,
]


# ------------------------------------------------------------------ what may be asked for
@pytest.mark.parametrize(
    "head", ["", "L5", "H1", "L-1H0", "L1H0.5", "5.1", (1,), (1, 2, 3), (-1, 0), (True, 1), 5, None]
)
def test_heads_that_are_none(head: Any) -> None:
    with pytest.raises(InputError, match="A head is written like"):
        parse_head(head)


def test_heads_are_read_in_every_spelling() -> None:
    assert parse_head(" l5h11 ") == (5, 11)
    assert parse_head([np.int64(5), torch.tensor(1)]) == (5, 1)
    assert parse_heads("L1H0,L0H3") == parse_heads(["L0H3", (1, 0), "L1H0"]) == ((0, 3), (1, 0))
    for nothing in ([], (), 3, None):
        with pytest.raises(InputError):
            parse_heads(nothing)


@pytest.mark.parametrize("keys", [(), -1, (0, -2), (0.5,), "0", None, (True,)])
def test_keys_that_are_none(keys: Any) -> None:
    for make in (MaskKeys, lambda keys: ScaleKeys(keys, 2.0)):
        with pytest.raises(InputError, match="keys must be token positions"):
            make(keys)


@pytest.mark.parametrize("gamma", [0, -1.0, float("inf"), float("nan"), "2", None, True])
def test_gammas_that_are_none(gamma: Any) -> None:
    with pytest.raises(InputError, match="gamma must be a finite number above 0"):
        ScaleKeys(0, gamma)


def test_other_fields_that_are_wrong() -> None:
    for make in (
        lambda: SlidingWindow(0),
        lambda: SlidingWindow(2.5),  # type: ignore[arg-type]
        lambda: SlidingWindow(3, sinks=-1),
        lambda: AblateHeads(["L0H0"], "gone"),  # type: ignore[arg-type]
        lambda: AblateHeads(["L0H0"], "mean"),
        lambda: AblateHeads(["L0H0"], "zero", {"L0H0": [0.0]}),
        lambda: MaskKeys(0, spare_self="yes"),  # type: ignore[arg-type]
        lambda: Composition(()),
        lambda: Composition((1,)),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError):
            make()


def test_interventions_are_frozen_and_compare_by_content() -> None:
    assert ScaleKeys([3, 0], 2) == ScaleKeys((0, 3), 2.0)  # type: ignore[arg-type]
    assert len({AblateHeads("L1H0"), AblateHeads([(1, 0)]), MaskKeys(0)}) == 2  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        MaskKeys(0).keys = (1,)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("head", "problem"),
    [("L2H0", "the model has 2 layers, L0 to L1"), ("L0H4", "a layer has 4 heads, H0 to H3")],
)
@pytest.mark.parametrize("make", [lambda h: MaskKeys(0, h), lambda h: ScaleKeys(0, 2.0, h) + MaskKeys(0), AblateHeads])
def test_heads_that_the_model_has_not(make: Any, head: str, problem: str, zoo: Path) -> None:
    bridge = boot("llama", zoo)
    with pytest.raises(InputError, match=f"{head} does not exist in this model: {problem}"):
        reference.under(bridge, make([head]), random_ids())


def test_layers_without_attention_have_no_heads(zoo: Path) -> None:
    with pytest.raises(InputError, match="L0H1 does not exist in this model: layer 0 has no softmax attention"):
        reference.under(boot("qwen3_next", zoo), MaskKeys(0, ["L0H1"]), random_ids())


# ------------------------------------------------------------------ composition
@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom"])
def test_a_composition_is_its_edits_in_one_engine(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    both = reference.patterns(bridge, ids, ScaleKeys(0, 4.0) + MaskKeys(5))[0]
    expected = reference.patterns(bridge, ids)[0]
    expected[..., 0] *= 4.0
    expected[..., 5] *= torch.arange(POS) == 5
    torch.testing.assert_close(both, reference.renormalised(expected), atol=2e-6, rtol=0)
    twice = reference.under(bridge, ScaleKeys(0, 2.0) + ScaleKeys(0, 2.0), ids)
    torch.testing.assert_close(twice, reference.under(bridge, ScaleKeys(0, 4.0), ids), atol=5e-5, rtol=0)


def test_compositions_are_flat_and_add_only_interventions() -> None:
    a, b, c = ScaleKeys(0, 2.0), MaskKeys(5), SlidingWindow(4)
    assert (a + b) + c == a + (b + c) == Composition((a, b, c))
    with pytest.raises(TypeError):
        a + 3  # type: ignore[operator]


def test_the_order_counts_where_one_overwrites(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    flat, tilt = AblateHeads("all", "uniform"), MaskKeys((0, 1))
    assert torch.equal(
        reference.patterns(bridge, ids, ScaleKeys(0, 9.0) + flat)[1], reference.patterns(bridge, ids, flat)[1]
    )
    after = reference.patterns(bridge, ids, flat + tilt)[0]
    assert not after[:, :, 2:, :2].any()


# ------------------------------------------------------------------ JSON
@pytest.mark.parametrize("intervention", ALL, ids=repr)
def test_json_round_trip(intervention: Intervention) -> None:
    text = intervention.to_json()
    assert Intervention.from_json(text) == intervention
    assert Intervention.from_json(text).to_json() == text


def test_the_json_of_today_stays_readable() -> None:
    text = (
        '{"format": "sinklens-intervention", "version": 1, "intervention": {"kind": "ScaleKeys", "keys": [0], '
        '"gamma": 2.0, "heads": ["L5H1"]}}'
    )
    assert Intervention.from_json(text) == ScaleKeys(0, 2.0, heads=["L5H1"])  # type: ignore[arg-type]
    assert ScaleKeys(0, 2.0, heads=["L5H1"]).to_json() == text  # type: ignore[arg-type]


def json_with(**changes: Any) -> str:
    return json.dumps(json.loads(MaskKeys(0).to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "cannot be read"),
        (MaskKeys(0).to_json()[:-5], "cannot be read"),
        ("[]", "as to_json"),
        ("null", "as to_json"),
        (json_with(format="other"), "as to_json"),
        (json_with(version=2), "reads up to 1; update sinklens"),
        (json_with(version="1"), "version is damaged"),
        (json_with(version=True), "version is damaged"),
        (json_with(intervention=None), "is damaged"),
        (json_with(intervention={"keys": [0]}), "is damaged"),
        (json_with(intervention={"kind": "Magic"}), "'Magic' is not an intervention"),
        (json_with(intervention={"kind": "MaskKeys", "key": [0]}), "MaskKeys has the fields keys, heads, spare_self"),
        (json_with(intervention={"kind": "MaskKeys"}), "got none"),
        (json_with(intervention={"kind": "MaskKeys", "keys": ["a"]}), "keys must be token positions"),
        (json_with(intervention={"kind": "MaskKeys", "keys": {"a": 1}}), "keys must be token positions"),
        (json_with(intervention={"kind": "MaskKeys", "keys": [0], "heads": ["L"]}), "A head is written like"),
        (json_with(intervention={"kind": "AblateHeads", "heads": ["L0H0"], "how": []}), "how must be"),
        (json_with(intervention={"kind": "Composition", "parts": [{"kind": "Magic"}]}), "'Magic'"),
        (json_with(intervention={"kind": "Composition", "parts": 3}), "at least one intervention"),
    ],
)
def test_damaged_json_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Intervention.from_json(text)


def test_something_else_than_text_is_no_json() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Intervention.from_json(None)  # type: ignore[arg-type]


# ------------------------------------------------------------------ the model afterwards
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt", "bloom"])
def test_everything_is_restored(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    plain = bridge(ids)
    with SEVERAL(bridge):
        changed = bridge(ids)
    before = reference.state(bridge)
    assert float((changed - plain).abs().max()) > 1e-2
    with pytest.raises(RuntimeError, match="in the middle"), SEVERAL(bridge):
        bridge(ids)
        raise RuntimeError("in the middle")

    def fail(x: torch.Tensor, hook: Any) -> None:
        raise RuntimeError("in a layer")

    with (
        pytest.raises(RuntimeError, match="in a layer"),
        SEVERAL(bridge),
        bridge.hooks(fwd_hooks=[("blocks.1.hook_in", fail)]),
    ):
        bridge(ids)

    @dataclasses.dataclass(frozen=True)
    class Broken(Intervention):
        def edits(self, positions: Any) -> list[Any]:
            return [self]

        def edit_scores(self, block: Block) -> None:
            raise RuntimeError("in an edit")

    try:
        with pytest.raises(RuntimeError, match="in an edit"):
            reference.under(bridge, Broken(), ids)
    finally:
        del Intervention._registry["Broken"]
    with pytest.raises(InputError, match="does not exist"):
        reference.under(bridge, SEVERAL + AblateHeads(["L9H0"]), ids)
    assert reference.same(before, reference.state(bridge))
    assert torch.equal(bridge(ids), plain)


def test_one_intervention_at_a_time(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    plain = bridge(ids)
    with MaskKeys(0)(bridge):
        before = bridge(ids)
        with pytest.raises(InputError, match="already open"), MaskKeys(1)(bridge):
            pass
        assert torch.equal(bridge(ids), before)
    with AttentionEngine(bridge), pytest.raises(InputError, match="already open"), MaskKeys(1)(bridge):
        pass
    assert torch.equal(bridge(ids), plain)


def test_an_intervention_can_be_used_again(zoo: Path) -> None:
    method, ids = ScaleKeys(0, 3.0), random_ids(pos=POS)
    first = reference.under(boot("llama", zoo), method, ids)
    reference.under(boot("gpt2", zoo), method, ids)
    assert torch.equal(reference.under(boot("llama", zoo), method, ids), first)


@pytest.mark.parametrize("name", ["llama", "bloom", "gptj"])
def test_gradients_are_refused(name: str, zoo: Path) -> None:
    with torch.enable_grad(), pytest.raises(InputError, match="no gradients"):
        reference.under(boot(name, zoo), AblateHeads("all"), random_ids())


# ------------------------------------------------------------------ padding and caches
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt", "bloom"])
def test_left_padding_does_not_count(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    mask = padding_mask(2, POS, 7, "left")
    padded = reference.under(bridge, SEVERAL, ids, attention_mask=mask)
    alone = reference.under(bridge, SEVERAL, ids[1:, 7:])
    torch.testing.assert_close(padded[1:, 7:], alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(padded[:1], reference.under(bridge, SEVERAL, ids[:1]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("intervention", [*ALL[:5], SEVERAL], ids=repr)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt", "bloom"])
def test_cached_decoding_equals_a_full_forward(name: str, intervention: Intervention, zoo: Path) -> None:
    check_decoding(name, intervention, zoo)


@pytest.mark.parametrize(
    "intervention", [ScaleKeys(0, 9.0) + AblateHeads(["L3H1"]), SlidingWindow(9, sinks=1)], ids=repr
)
def test_cached_decoding_beside_linear_attention(intervention: Intervention, zoo: Path) -> None:
    check_decoding("qwen3_next", intervention, zoo)


@pytest.mark.parametrize("name", ["mistral", "gpt_oss", "deepseek_v3", "falcon_alibi", "codegen"])
def test_cached_decoding_of_other_families(name: str, zoo: Path) -> None:
    check_decoding(name, SEVERAL, zoo)


def check_decoding(name: str, intervention: Intervention, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    full = reference.under(bridge, intervention, ids)
    model, cache, parts = bridge.original_model, None, []
    with intervention(bridge):  # beyond the windows of 16, whose caches drop keys
        for start, stop in ((0, 22), (22, 23), (23, 24), (24, 31), *((i, i + 1) for i in range(31, POS))):
            out = model(ids[:, start:stop], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom"])
def test_generation_is_greedy_under_the_intervention(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(batch=1, pos=20)
    options: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, stop_at_eos=False, verbose=False)
    with SEVERAL(bridge):
        text = bridge.generate(ids, return_type="tokens", use_past_kv_cache=True, **options)
        logits = bridge(text)
    same_choice(text[:, 20:], logits[:, 19:-1])
    assert not torch.equal(text, bridge.generate(ids, return_type="tokens", **options))


def test_preallocated_caches_are_refused(zoo: Path) -> None:
    from transformers import StaticCache

    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    cache = StaticCache(config=bridge.original_model.config, max_cache_len=64)
    with MaskKeys(0)(bridge), pytest.raises(InputError, match="growing KV cache"):
        bridge.original_model(ids, past_key_values=cache, use_cache=True)


# ------------------------------------------------------------------ half precision
@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_bf16_follows_fp32(name: str, zoo: Path) -> None:
    bridge = TransformerBridge.boot_transformers(str(checkpoint(name, zoo)), device="cpu", dtype=torch.bfloat16).eval()
    ids = random_ids(pos=POS)
    for method in (ScaleKeys(0, 4.0), MaskKeys(0), SlidingWindow(6, sinks=1), AblateHeads(["L0H1"]), SEVERAL):
        logits = reference.under(bridge, method, ids)
        assert logits.dtype == torch.bfloat16
        assert logits.isfinite().all()
    before, after = reference.patterns(bridge, ids)[0], reference.patterns(bridge, ids, ScaleKeys(0, 4.0))[0]
    before[..., 0] *= 4
    torch.testing.assert_close(after, reference.renormalised(before), atol=0.03, rtol=0)
