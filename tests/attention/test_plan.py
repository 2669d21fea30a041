"""How a model is measured: the right path, one warning, no numbers where nothing reproduces the bridge."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, ReceivedMass, engine, kernel, plan, plan_for
from sinklens.attention.kernel import attend
from sinklens.errors import UnsupportedArchitectureError
from tests.families import BROKEN, FAMILIES, boot, boot_hf, checkpoint, random_ids

IDS = random_ids()
FAST = [name for name, family in FAMILIES.items() if family.path in ("fast", "mixed")]
FALLBACK = [name for name, family in FAMILIES.items() if family.path == "fallback"]
JOINT = ("gpt2", "gpt_neox", "phi3")


def planned(bridge: TransformerBridge) -> tuple[plan.AttentionPlan, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = plan_for(bridge)
    return found, [str(w.message) for w in caught if "measured through" in str(w.message)]


@pytest.mark.parametrize("name", FALLBACK)
def test_the_fallback_warns_once(name: str, zoo: Path) -> None:
    bridge = boot.__wrapped__(name, zoo)
    found, messages = planned(bridge)
    assert found.path == "fallback"
    assert len(messages) == 1
    assert "T x T" in messages[0]
    again, messages = planned(bridge)
    assert again is found
    assert messages == []


@pytest.mark.parametrize("name", FAST)
def test_the_fast_path_warns_never(name: str, zoo: Path) -> None:
    found, messages = planned(boot.__wrapped__(name, zoo))
    assert found.path == "fast"
    assert messages == []


def test_no_attention_no_forward_pass(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = boot.__wrapped__("mamba", zoo)
    monkeypatch.setattr(plan, "_reference", None)
    found = plan_for(bridge)
    assert found.path == "none"
    assert {layer.path for layer in found.layers} == {"none"}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bridge_that_is_not_its_model_is_refused(name: str, zoo: Path) -> None:
    bridge = boot.__wrapped__(name, zoo)
    for _ in range(2):  # nothing is remembered that would let it through
        with pytest.raises(UnsupportedArchitectureError, match="another attention than Hugging Face"):
            plan_for(bridge)
    assert all("forward" not in block.attn.__dict__ for block in bridge.blocks)


def _wrong_kernel(call: Any, statistics: Any, edits: Any, **options: Any) -> torch.Tensor:
    return attend(call, statistics, edits, **options) * 1.01


def test_a_kernel_that_is_wrong_is_not_used(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "attend", _wrong_kernel)
    found, messages = planned(boot.__wrapped__("llama", zoo))
    assert found.path == "fallback"
    assert "logits differ" in messages[0]


def test_a_pattern_that_is_wrong_is_noticed(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = boot.__wrapped__("llama", zoo)

    def forgets_the_output(call: Any, statistics: Any, edits: Any, **options: Any) -> torch.Tensor:
        good = attend(call)
        wrong = kernel.AttentionCall(**vars(call) | {"scaling": call.scaling * 0.9})
        attend(wrong, statistics, edits, **options)
        return good

    monkeypatch.setattr(engine, "attend", forgets_the_output)
    found, messages = planned(bridge)
    assert found.path == "fallback"
    assert "pattern of layer" in messages[0]


@pytest.mark.parametrize("name", JOINT)
def test_processed_weights_are_noticed(name: str, zoo: Path) -> None:
    # the bridge keeps copies of a fused projection: folding layer norms leaves the Hugging Face module behind
    bridge = boot.__wrapped__(name, zoo)
    assert planned(bridge)[0].path == "fast"
    bridge.enable_compatibility_mode(disable_warnings=True)
    logits = bridge(IDS)
    found, messages = planned(bridge)
    assert found.path == "fallback"
    assert len(messages) == 1
    with AttentionEngine(bridge, path=found.path):
        torch.testing.assert_close(bridge(IDS), logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "bloom", *JOINT])
def test_weights_processed_before_the_first_plan(name: str, zoo: Path) -> None:
    bridge = boot.__wrapped__(name, zoo)
    bridge.enable_compatibility_mode(disable_warnings=True)
    found, _ = planned(bridge)
    logits = bridge(IDS)
    assert found.path == ("fallback" if name in JOINT else FAMILIES[name].path)
    with AttentionEngine(bridge, path=found.path):
        torch.testing.assert_close(bridge(IDS), logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", *JOINT])
def test_edited_weights_are_noticed(name: str, zoo: Path) -> None:
    bridge = boot.__wrapped__(name, zoo)
    before, plain = planned(bridge)[0], bridge(IDS)
    bridge.blocks[0].attn.v.original_component.weight[:, :8] = 0  # a view of the fused weight, or a copy of it
    edited = bridge(IDS)
    assert float((edited - plain).abs().max()) > 0.1
    found, _ = planned(bridge)
    assert found is not before
    with AttentionEngine(bridge, path=found.path):
        torch.testing.assert_close(bridge(IDS), edited, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["bloom", "falcon"])
def test_edited_weights_of_a_known_model_are_no_reason_to_refuse(name: str, zoo: Path) -> None:
    bridge = boot.__wrapped__(name, zoo)
    assert planned(bridge)[0].path == "fallback"
    bridge.blocks[0].attn.v.original_component.weight.mul_(0.5)
    assert planned(bridge)[0].path == "fallback"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gpt2", "bloom", "falcon", "falcon_alibi", "mpt"])
def test_low_precision(name: str, dtype: torch.dtype, zoo: Path) -> None:
    bridge = TransformerBridge.boot_transformers(str(checkpoint(name, zoo)), device="cpu", dtype=dtype)
    bridge.eval()
    found, _ = planned(bridge)
    assert found.path == FAMILIES[name].path
    computed: dict[int, dict[str, torch.Tensor]] = {}
    with AttentionEngine(
        bridge,
        path=found.path,
        statistics=[ReceivedMass],
        on_layer=lambda i, v, s: computed.update({i: s[0].compute()}),
    ):
        bridge(IDS)
    pos = IDS.shape[1]
    for layer, values in computed.items():
        window = FAMILIES[name].windows[layer] or pos
        queries = torch.arange(pos, 0, -1).clamp(max=window).float()  # hidden keys count as hidden in any dtype
        assert torch.equal(values["queries"], queries.expand(2, -1))
        assert values["mass"].dtype == torch.float32


def test_the_bridge_of_a_broken_family_differs_from_its_model(zoo: Path) -> None:
    # what the refusal above is about: its Hugging Face model is right, its bridge is not
    name = next(iter(BROKEN))
    assert float((boot(name, zoo)(IDS) - boot_hf(name, zoo)(IDS).logits).abs().max()) > 0.1
