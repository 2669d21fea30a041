"""What is no decoder of text is refused in a sentence, before its weights or its tokenizer are looked at."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from sinklens.errors import ModelLoadError, UnsupportedArchitectureError
from sinklens.models.kind import refuse_other_kinds
from sinklens.models.load import load
from tests.families import FAMILIES, byte_tokenizer, checkpoint

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
OTHERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "vit": ("ViTConfig", "ViTForImageClassification", SMALL | {"image_size": 16, "patch_size": 8}, "a vision model"),
    "bert": ("BertConfig", "BertForMaskedLM", SMALL | {"vocab_size": 260}, "an encoder"),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", SMALL | {"vocab_size": 260}, "an encoder"),
    "t5": (
        "T5Config", "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 260},
        "an encoder-decoder",
    ),
    "t5 encoder": (
        "T5Config", "T5EncoderModel",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 260,
         "is_encoder_decoder": False},
        "an encoder-decoder",
    ),
    "wav2vec2": (
        "Wav2Vec2Config", "Wav2Vec2ForCTC",
        SMALL | {"conv_dim": (32,), "conv_kernel": (10,), "conv_stride": (5,), "num_conv_pos_embeddings": 16,
                 "num_conv_pos_embedding_groups": 4, "vocab_size": 32},
        "an audio model",
    ),
    "ast": ("ASTConfig", "ASTForAudioClassification", SMALL | {"max_length": 64, "num_mel_bins": 32}, "an audio model"),
    "clip": (
        "CLIPConfig", "CLIPModel",
        {"text_config": SMALL | {"vocab_size": 260}, "vision_config": SMALL | {"image_size": 16, "patch_size": 8}},
        "a model of pictures and text",
    ),
    "whisper": (
        "WhisperConfig", "WhisperForConditionalGeneration",
        {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 300,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        "an encoder-decoder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("tokenizer", [True, False])
def test_other_models_are_refused_by_their_kind(name: str, tokenizer: bool, tmp_path: Path) -> None:
    config_class, model_class, fields, kind = OTHERS[name]
    config = getattr(transformers, config_class)(**fields)
    getattr(transformers, model_class)(config).save_pretrained(tmp_path)
    if tokenizer:
        byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitectureError) as error:
        load(tmp_path, device="cpu")
    text = str(error.value)
    assert text.startswith(f"{tmp_path} is a {model_class}, {kind}; expected a decoder of text") and "\n" not in text


@pytest.mark.parametrize("name", FAMILIES)
def test_decoders_are_not(name: str, zoo: Path) -> None:
    config = json.loads((checkpoint(name, zoo) / "config.json").read_text())
    refuse_other_kinds(config, name)
    refuse_other_kinds(config | {"architectures": None}, name)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "nonsense"},
        {"model_type": "my_own", "architectures": ["MyOwnModel"]},
        {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]},
        {"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True},
        {"model_type": "llama", "architectures": ["LlamaModel"]},
    ],
)
def test_what_may_be_a_decoder_is_left_to_the_loading(config: dict[str, Any]) -> None:
    refuse_other_kinds(config, "somewhere")


def test_an_adapter_directory_says_how_to_merge(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"})
    )
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelLoadError) as error:
        load(tmp_path)
    text = str(error.value)
    assert f"{tmp_path} holds an adapter for org/base and no model" in text
    assert "merge_and_unload().save_pretrained(OUT)" in text and "PeftModel.from_pretrained" in text
