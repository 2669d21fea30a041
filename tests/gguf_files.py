"""Tiny GGUF files written as llama.cpp's converter writes them, from the tiny checkpoints of the families."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from tests.families import BOS, EOS, PAD, UNK, byte_tokenizer

NAMES = {
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "lm_head.": "output.",
    "model.layers.": "blk.",
    ".self_attn.q_proj.": ".attn_q.",
    ".self_attn.k_proj.": ".attn_k.",
    ".self_attn.v_proj.": ".attn_v.",
    ".self_attn.o_proj.": ".attn_output.",
    ".mlp.gate_proj.": ".ffn_gate.",
    ".mlp.up_proj.": ".ffn_up.",
    ".mlp.down_proj.": ".ffn_down.",
    ".input_layernorm.": ".attn_norm.",
    ".post_attention_layernorm.": ".ffn_norm.",
}


def write_gguf(
    checkpoint: Path,
    path: Path,
    *,
    kind: str = "F32",
    architecture: str = "llama",
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    add_bos: bool = False,
    tokenizer: bool = True,
    parts: int = 1,
) -> Path:
    """Write a Llama or Qwen2 checkpoint as GGUF and return its (first) file.

    Args:
        checkpoint: Directory with config.json and model.safetensors.
        path: File to write.
        kind: ``"F32"``, ``"F16"`` or a quantisation of rows of 32 such as ``"Q8_0"``; norms, biases and rows that do
            not fit stay F32, as llama.cpp leaves them.
        architecture: llama.cpp's name.
        keys: More keys below the architecture's prefix.
        tensors: More tensors, or others under the names of some.
        add_bos: What the tokenizer says about the BOS.
        tokenizer: Whether the file has one.
        parts: Number of files to split it into.
    """
    config = AutoConfig.from_pretrained(checkpoint)
    weights = {_name(name): weight for name, weight in load_file(checkpoint / "model.safetensors").items()}
    for name, weight in weights.items():
        if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
            heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
            weights[name] = weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
    arrays = {name: weight.float().numpy() for name, weight in weights.items()} | dict(tensors or {})
    options = {"split_max_tensors": -(-len(arrays) // parts)} if parts > 1 else {}
    writer = gguf.GGUFWriter(path, architecture, **options)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    for key, value in (keys or {}).items():
        full = key if key.startswith(("general.", "tokenizer.", "split.")) else f"{architecture}.{key}"
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](full, value)
    if tokenizer:
        _add_tokenizer(writer, add_bos)
    for name, array in arrays.items():
        fits = array.ndim == 2 and array.shape[-1] % 32 == 0
        wanted = gguf.GGMLQuantizationType[kind if fits else "F32"]
        stored = gguf.quants.quantize(np.ascontiguousarray(array, dtype=np.float32), wanted)
        writer.add_tensor(name, stored, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if parts == 1 else path.with_name(f"{path.stem}-00001-of-{parts:05d}.gguf")


def _name(hf_name: str) -> str:
    for theirs, ggml in NAMES.items():
        hf_name = hf_name.replace(theirs, ggml)
    return hf_name


def _add_tokenizer(writer: Any, add_bos: bool) -> None:
    vocabulary = byte_tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens[-1] = "qz"  # a format without merges is read as one that has to derive them
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 4 + [1] * (len(tokens) - 4))
    writer.add_token_merges(["q z"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNK)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(add_bos)


def dequantised(checkpoint: Path, kind: str) -> dict[str, torch.Tensor]:
    """The checkpoint's weights after a round through a quantisation, in Hugging Face's own layout and names."""
    out = {}
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        array = weight.float().numpy()
        if array.ndim == 2 and array.shape[-1] % 32 == 0:
            wanted = gguf.GGMLQuantizationType[kind]
            array = gguf.quants.dequantize(gguf.quants.quantize(array, wanted), wanted)
        out[name] = torch.from_numpy(np.array(array, dtype=np.float32))
    return out
