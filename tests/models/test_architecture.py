"""Facts about a model's layers: which have attention, their windows, output weights, the context length."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import UnsupportedArchitectureError
from sinklens.models.architecture import (
    attention_layers,
    context_length,
    has_learned_sink,
    output_weights,
    text_config,
    window_of,
)
from tests import oracle
from tests.families import FAMILIES, HEADS, N_CTX, VOCAB, boot, byte_tokenizer, random_ids

WITH_ATTENTION = [name for name, family in FAMILIES.items() if family.attention_layers]


def config_only(kind: str, **fields: Any) -> Any:
    """What ``window_of`` and ``context_length`` read of a bridge, for a config of this class."""
    config = getattr(transformers, kind)(**fields)
    holder = type("Holder", (), {"config": config})()
    return type("Bridge", (), {"original_model": holder})()


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_layers(name: str, zoo: Path) -> None:
    model = boot(name, zoo)
    found = attention_layers(model)
    assert tuple(found) == FAMILIES[name].attention_layers
    assert all(found[layer] is model.blocks[layer].attn for layer in found)


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_windows_are_those_of_the_pattern(name: str, zoo: Path) -> None:
    family, model = FAMILIES[name], boot(name, zoo)
    windows = [window_of(model, layer) for layer in family.attention_layers]
    assert windows == [family.windows[layer] for layer in family.attention_layers]
    patterns = oracle.full_patterns(model, random_ids(1, 40))
    for layer, window in zip(family.attention_layers, windows, strict=True):
        found = patterns[layer]
        assert found is not None
        seen = (found.pattern > 0).any(1)[0]  # the last query sees exactly its window
        assert int(seen[-1].sum()) == (window or 40)


def test_windows_that_the_zoo_does_not_have() -> None:
    small: dict[str, Any] = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4}
    # a window that is switched off
    qwen = config_only("Qwen2Config", **small, use_sliding_window=False, sliding_window=8)
    assert [window_of(qwen, layer) for layer in range(4)] == [None] * 4
    old = config_only("MistralConfig", **small, sliding_window=8)
    assert window_of(old, 0) == 8
    old.original_model.config.use_sliding_window = False
    assert window_of(old, 0) is None
    # a window for the upper layers
    qwen = config_only("Qwen2Config", **small, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    assert [window_of(qwen, layer) for layer in range(4)] == [None, None, 8, 8]
    # Phi-3 and Mixtral slide everywhere
    assert window_of(config_only("Phi3Config", **small, sliding_window=12), 3) == 12
    assert window_of(config_only("MixtralConfig", **small, sliding_window=12), 0) == 12
    assert window_of(config_only("MistralConfig", **small, sliding_window=None), 0) is None


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_learned_sinks(name: str, zoo: Path) -> None:
    family, model = FAMILIES[name], boot(name, zoo)
    assert all(has_learned_sink(model, layer) == family.sink for layer in family.attention_layers)


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_output_weights_turn_z_into_the_output(name: str, zoo: Path) -> None:
    family, model = FAMILIES[name], boot(name, zoo)
    with torch.no_grad():
        _, cache = model.run_with_cache(random_ids(1, 10))
    for layer in family.attention_layers:
        weights = output_weights(model, layer)
        assert weights is not None and weights.shape == (HEADS, family.d_value, 32)
        z = cache[f"blocks.{layer}.attn.hook_z"].reshape(1, 10, HEADS, family.d_value)
        out = torch.einsum("bphd,hdm->bpm", z, weights)
        bias = model.blocks[layer].attn.b_O
        out = out if bias is None else out + bias
        if family.residual_in_output:
            out = out + cache[f"blocks.{layer}.hook_resid_pre"]
        torch.testing.assert_close(cache[f"blocks.{layer}.attn.hook_out"], out, atol=2e-5, rtol=0)


def test_output_weights_that_cannot_be_read_are_none(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = boot.__wrapped__("deepseek_v3", zoo)
    assert output_weights(fresh, 0) is None  # its geometry is unknown until the first forward pass
    fresh(random_ids(1, 5))
    weights = output_weights(fresh, 0)
    assert weights is not None and weights.shape == (HEADS, 12, 32)

    model = boot("llama", zoo)
    for packed in (
        torch.zeros(512, 1, dtype=torch.uint8),
        torch.zeros(32, 32),
    ):  # quantised weights lose their shape
        monkeypatch.setattr(type(model.blocks[0].attn), "W_O", packed, raising=False)
        assert output_weights(model, 0) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_context_length(name: str, zoo: Path) -> None:
    expected = None if name in ("bloom", "mamba") else N_CTX
    if name == "falcon_alibi":  # ALiBi has no limit, but the config names one
        expected = text_config(boot(name, zoo)).max_position_embeddings
    if name == "mpt":
        expected = text_config(boot(name, zoo)).max_seq_len
    assert context_length(boot(name, zoo)) == expected


def test_context_length_of_a_multimodal_config() -> None:
    text = {"model_type": "llama", "max_position_embeddings": 77}
    assert context_length(config_only("LlavaConfig", text_config=text)) == 77


@pytest.mark.filterwarnings("ignore")
def test_encoder_decoder_models_are_refused_in_a_sentence(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=32,
        d_ff=32,
        d_kv=8,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=3,
        pad_token_id=3,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    with pytest.raises(UnsupportedArchitectureError, match="Expected a decoder-only model with a stack of layers"):
        attention_layers(model)
