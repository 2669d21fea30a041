"""Every family of the zoo boots offline, agrees with Hugging Face, and is what ``families.py`` says it is."""

import contextlib
import socket
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from tests import families
from tests.families import BROKEN, FAMILIES, HEADS, boot, boot_hf, padding_mask, random_ids

pytestmark = pytest.mark.usefixtures("no_gradients")

POS, N_PAD = 40, 10
IDS = random_ids(pos=POS)
WITH_ATTENTION = [name for name, family in FAMILIES.items() if family.attention_layers]


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError("booting reached for the network or started a program")


@pytest.mark.parametrize("name", FAMILIES)
def test_boots_offline_and_equals_hugging_face(name: str, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _refuse)
    monkeypatch.setattr(subprocess, "Popen", _refuse)  # TransformerLens can call pip
    bridge = boot(name, zoo)
    logits = boot_hf(name, zoo)(IDS).logits
    assert logits.std() > 0.3  # a tolerance means something only beside the size of the numbers
    torch.testing.assert_close(bridge(IDS), logits, atol=1e-5, rtol=0)
    assert len(bridge.blocks) == FAMILIES[name].n_layers
    assert (bridge.to_tokens("a")[0, 0] == families.BOS) == FAMILIES[name].prepends_bos


@pytest.mark.parametrize("name", FAMILIES)
def test_interface_is_called_once_per_attention_layer_or_never(
    name: str, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: list[int] = []

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any) -> Any:
        layers.append(module.layer_idx)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.mT * kwargs["scaling"]
        if cap := kwargs.get("softcap"):
            scores = cap * torch.tanh(scores / cap)
        scores = scores + mask
        if (sink := kwargs.get("s_aux")) is not None:
            column = sink.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, column], -1)
        pattern = scores.softmax(-1)[..., : key.shape[2]]
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    monkeypatch.setitem(AttentionInterface._global_mapping, "counted", attend)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "counted", eager_mask)
    model = AutoModelForCausalLM.from_pretrained(families.checkpoint(name, zoo), dtype=torch.float32).eval()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation_internal = "counted"
    logits = model(IDS).logits
    fast = FAMILIES[name].path in ("fast", "mixed")
    assert layers == list(FAMILIES[name].attention_layers if fast else ())
    if fast:
        torch.testing.assert_close(logits, boot_hf(name, zoo)(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_layers_are_as_recorded(name: str, zoo: Path) -> None:
    family, bridge = FAMILIES[name], boot(name, zoo)
    assert [i for i, block in enumerate(bridge.blocks) if "attn" in block._modules] == list(family.attention_layers)
    _, cache = bridge.run_with_cache(IDS)
    assert sum(key.endswith("hook_pattern") for key in cache) == len(family.attention_layers)
    for layer in family.attention_layers:
        assert type(bridge.blocks[layer].attn).__name__ == family.bridge
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        assert pattern.shape == (2, HEADS, POS, POS)
        visible = (pattern > 0).all(0).all(0)
        i, j = torch.arange(POS)[:, None], torch.arange(POS)[None]
        assert torch.equal(visible, (j <= i) & (i - j < (family.windows[layer] or POS)))
        whole = pattern.sum(-1)
        assert (whole < 0.999).any() == family.sink
        assert whole.max() < 1 + 1e-6


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_attention_is_far_from_uniform(name: str, zoo: Path) -> None:
    _, cache = boot(name, zoo).run_with_cache(IDS)
    for layer in FAMILIES[name].attention_layers:
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, :, 8:].double()
        share = pattern / pattern.sum(-1, keepdim=True)
        gap = (pattern > 0).sum(-1).log() - torch.special.entr(share).sum(-1)
        assert gap.mean((0, 2)).min() > 0.4  # nats, in every head


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_values_and_output_weights_are_as_recorded(name: str, zoo: Path) -> None:
    family, bridge = FAMILIES[name], boot(name, zoo)
    _, cache = bridge.run_with_cache(IDS)
    for layer in family.attention_layers:
        attention, prefix = bridge.blocks[layer].attn, f"blocks.{layer}.attn.hook_"
        value, z = cache[prefix + "v"], cache[prefix + "z"]
        if family.hook_v == "head":
            value = value.transpose(1, 2)
        assert value.shape == (2, POS, family.kv_heads, family.d_value)
        w_o = attention.W_O
        assert w_o.shape == (HEADS, family.d_value, 32)
        if family.hook_z == "mis-split":
            assert z.shape[2:] != (HEADS, family.d_value)
            z = z.reshape(2, POS, HEADS, family.d_value)
        expanded = value.repeat_interleave(HEADS // family.kv_heads, 2)
        mixed = torch.einsum("bhij,bjhd->bihd", cache[prefix + "pattern"], expanded)
        assert torch.allclose(z, mixed, atol=1e-5) == (family.hook_z != "gated")
        out = torch.einsum("bihd,hdm->bim", z, w_o)
        if attention.b_O is not None:
            out = out + attention.b_O
        if family.residual_in_output:
            out = out + cache[f"blocks.{layer}.hook_resid_pre"]
        torch.testing.assert_close(cache[prefix + "out"], out, atol=2e-5, rtol=0)
    assert bridge.W_O.shape == (len(family.attention_layers), HEADS, family.d_value, 32)
    if family.w_o == "after a forward":
        with pytest.raises(ValueError, match="Cannot split"):
            _ = boot.__wrapped__(name, zoo).W_O  # a bridge that has not run yet


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_score_hook_is_as_recorded(name: str, zoo: Path) -> None:
    family, bridge = FAMILIES[name], boot(name, zoo)
    logits, cache = bridge.run_with_cache(IDS)
    layer = family.attention_layers[0]
    prefix = f"blocks.{layer}.attn.hook_"
    pattern, scores = cache[prefix + "pattern"], cache[prefix + "attn_scores"]
    assert torch.equal(scores, pattern) == (family.scores == "pattern")
    if family.scores == "live":
        hidden = torch.ones(POS, POS, dtype=torch.bool).triu(1)
        assert (scores[..., hidden] < -1e38).all()
        assert scores.isfinite().all()
        assert torch.allclose(scores.softmax(-1), pattern, atol=1e-5) != family.sink

    def only_itself(tensor: Tensor, hook: Any) -> Tensor:
        edited = torch.full_like(tensor, -1e4 if hook.name.endswith("scores") else 0.0)
        edited.diagonal(dim1=-2, dim2=-1).fill_(1.0)
        return edited

    for hook in ("attn_scores", "pattern"):
        with pytest.warns(UserWarning) if family.scores == "pattern" else contextlib.nullcontext():
            edited = bridge.run_with_hooks(IDS, fwd_hooks=[(prefix + hook, only_itself)])
        assert ((edited - logits).abs().max() > 1e-3) == (family.scores == "live")


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_changes_no_real_logit(name: str, zoo: Path) -> None:
    bridge, logits = boot(name, zoo), boot(name, zoo)(IDS)
    right = padding_mask(2, POS, N_PAD, "right")
    real = right.bool()
    torch.testing.assert_close(bridge(IDS, attention_mask=right)[real], logits[real], atol=1e-5, rtol=0)

    left = padding_mask(2, POS, N_PAD, "left")
    alone = bridge(IDS[1:, N_PAD:])[0]
    # state-space and delta-rule layers let a bias of the convolution leak out of the padding
    tolerance = 1e-5 if FAMILIES[name].path in ("fast", "fallback") else 1e-3
    padded = bridge(IDS, attention_mask=left)[1, N_PAD:]
    torch.testing.assert_close(padded, alone, atol=tolerance, rtol=0)
    plain = boot_hf(name, zoo)(IDS, attention_mask=left).logits[1, N_PAD:]
    assert torch.allclose(plain, alone, atol=tolerance) == FAMILIES[name].left_padding


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_rows_of_padding_queries_are_garbage(name: str, zoo: Path) -> None:
    _, cache = boot(name, zoo).run_with_cache(IDS, attention_mask=padding_mask(2, POS, N_PAD, "left"))
    row = cache[f"blocks.{FAMILIES[name].attention_layers[0]}.attn.hook_pattern"][1, 0, 5]
    seen = 6 if name == "gpt_neo" else POS
    expected = torch.zeros(POS) if FAMILIES[name].sink else torch.ones(POS) / seen * (torch.arange(POS) < seen)
    torch.testing.assert_close(row, expected)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_family_is_still_wrong(name: str, zoo: Path) -> None:
    # once this fails, TransformerLens is repaired and the family belongs in FAMILIES
    assert (boot(name, zoo)(IDS) - boot_hf(name, zoo)(IDS).logits).abs().max() > 0.1


def test_falcon_40b_as_it_is_configured_does_not_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = BROKEN["falcon_gqa"]
    monkeypatch.setitem(BROKEN, "falcon_40b", family)
    directory = families.build_checkpoint("falcon_40b", tmp_path)
    config = (directory / "config.json").read_text("utf-8")
    (directory / "config.json").write_text(config.replace('"multi_query": false', '"multi_query": true'))
    with pytest.raises(RuntimeError, match="split_sizes"):
        TransformerBridge.boot_transformers(str(directory), device="cpu")


def test_checkpoints_repeat_and_leave_the_random_state(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    first = families.build_checkpoint("llama", tmp_path / "a")
    second = families.build_checkpoint("llama", tmp_path / "b", dtype=torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    name = "model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()


def test_tokenizer_has_one_token_per_byte_and_adds_nothing() -> None:
    tokenizer = families.byte_tokenizer()
    ids = tokenizer("hé\n").input_ids
    assert len(ids) == 4
    assert min(ids) >= families.N_SPECIAL
    assert tokenizer.decode(ids) == "hé\n"
    assert len(tokenizer) == families.VOCAB
