"""A zoo of tiny random models, one per architecture family, made from their configs without a network.

Each has 2 to 4 layers, 4 heads, width 32 and 260 byte tokens. Weights are random but seeded, and the
attention projections are large enough that attention is far from uniform: a nearly uniform pattern hides
almost every mistake a test looks for. Biases and norm gains are random too, because a term that is zero or
one at initialisation can be forgotten without a test noticing.

The other fields of :class:`Family` are facts measured with TransformerLens 4.3 and transformers 5.23;
``test_families_boot.py`` holds them to it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from tests.pretend_cuda.aside import aside

transformers.utils.logging.disable_progress_bar()

BOS, EOS, UNK, PAD = 0, 1, 2, 3
N_SPECIAL = 4
VOCAB = 260
N_CTX = 128
HEADS = 4
WINDOW = 16
SINKS = (1.0, -1.0, 2.0, 0.5)
"""The learned sink logits of gpt-oss, one per head, the same in every layer."""


@dataclass(frozen=True)
class Family:
    """One architecture: how to make a tiny model of it, and what was measured about that model.

    Attributes:
        name: Key in ``FAMILIES``.
        make_config: Makes a fresh config.
        path: How the engine can measure it: ``fast`` (every attention layer calls transformers'
            AttentionInterface), ``fallback`` (attention that does not), ``none`` (no attention), ``mixed``
            (fast where there is attention, and layers without).
        n_layers: Number of blocks.
        attention_layers: Blocks that have a ``blocks[i].attn`` with a pattern.
        windows: Sliding window of each block, ``None`` for full attention or no attention.
        kv_heads: Key/value heads (query heads are always 4); 0 without attention.
        d_value: Width of one value head.
        bridge: Class name of ``bridge.blocks[i].attn``; empty without attention.
        scores: What ``hook_attn_scores`` holds: ``live`` (pre-softmax, edits reach the logits), ``pattern``
            (a copy of the pattern; edits of either hook are dropped), or ``none``.
        sink: A learned sink logit takes part of every row.
        hook_v: ``pos`` for ``[batch pos kv_head d_head]``, ``head`` for ``[batch kv_head pos d_head]``.
        hook_z: ``plain`` (``z = pattern v``), ``gated`` (times a gate), ``mis-split`` (wrong head axis).
        residual_in_output: ``attn.hook_out`` contains the residual stream (Bloom).
        w_o: ``W_O`` of the bridge and of each ``attn`` works: ``at once``, ``after a forward``, or ``none``.
        prepends_bos: ``bridge.to_tokens(text)`` puts a BOS first (``cfg.default_prepend_bos``).
        left_padding: Plain Hugging Face without position ids gets left padding right; the bridge always does.
        notes: What else to know.
    """

    name: str
    make_config: Callable[[], PretrainedConfig]
    path: Literal["fast", "fallback", "none", "mixed"]
    n_layers: int
    attention_layers: tuple[int, ...]
    windows: tuple[int | None, ...]
    kv_heads: int
    d_value: int
    bridge: str
    scores: Literal["live", "pattern", "none"]
    sink: bool = False
    hook_v: Literal["pos", "head"] = "pos"
    hook_z: Literal["plain", "gated", "mis-split"] = "plain"
    residual_in_output: bool = False
    w_o: Literal["at once", "after a forward", "none"] = "at once"
    prepends_bos: bool = True
    left_padding: bool = True
    notes: str = ""


def _config(config_class: str, **fields: Any) -> PretrainedConfig:
    defaults = {"vocab_size": VOCAB, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    config: PretrainedConfig = getattr(transformers, config_class)(**defaults | fields)
    return config


def _family(
    name: str,
    config_class: str,
    config: dict[str, Any],
    *,
    path: Literal["fast", "fallback", "none", "mixed"] = "fast",
    windows: tuple[int | None, ...] = (None, None),
    attention_layers: tuple[int, ...] | None = None,
    kv_heads: int = HEADS,
    d_value: int = 8,
    bridge: str = "PositionEmbeddingsAttentionBridge",
    scores: Literal["live", "pattern", "none"] = "live",
    **facts: Any,
) -> Family:
    return Family(
        name=name,
        make_config=functools.partial(_config, config_class, **config),
        path=path,
        n_layers=len(windows),
        attention_layers=tuple(range(len(windows))) if attention_layers is None else attention_layers,
        windows=windows,
        kv_heads=kv_heads,
        d_value=d_value,
        bridge=bridge,
        scores=scores,
        **facts,
    )


_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS}
_BASE = _SIZE | {"max_position_embeddings": N_CTX}
_LLAMA = _BASE | {"intermediate_size": 48, "num_key_value_heads": 2}
_NEOX = _BASE | {"intermediate_size": 64}
_WIDE = _LLAMA | {"head_dim": 16}  # d_head differs from d_model / heads
_GEMMA = _WIDE | {"num_hidden_layers": 3, "query_pre_attn_scalar": 16, "sliding_window": WINDOW}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_MIXTRAL = _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_QWEN3_NEXT = {"num_hidden_layers": 4, "head_dim": 8, "shared_expert_intermediate_size": 16}
_LINEAR_DIMS = {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
_LINEAR_HEADS = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
_GPT_NEO = {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW}
_MLA = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 12}
_DEEPSEEK_MOE = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}
_GPTJ = _BASE | {"rotary_dim": 4}
_PHI3 = _LLAMA | {"original_max_position_embeddings": N_CTX}
_JOINT_ROTARY = "JointQKVPositionEmbeddingsAttentionBridge"

_ALL = (
    _family("llama", "LlamaConfig", _LLAMA, kv_heads=2),
    _family(
        "mistral",
        "MistralConfig",
        _LLAMA | {"head_dim": 8, "sliding_window": WINDOW},
        kv_heads=2,
        windows=(WINDOW, WINDOW),
        notes="every layer slides, but config.layer_types is None and the attention module knows no window",
    ),
    _family("qwen2", "Qwen2Config", _LLAMA, kv_heads=2, prepends_bos=False),
    _family("qwen3", "Qwen3Config", _WIDE, kv_heads=2, d_value=16, prepends_bos=False),
    _family(
        "gemma2",
        "Gemma2Config",
        _GEMMA | {"attn_logit_softcapping": 5.0},
        kv_heads=2,
        d_value=16,
        windows=(WINDOW, None, WINDOW),
        notes="scores are after the soft cap; a norm after W_O hides a constant factor on v or z",
    ),
    _family(
        "gemma3",
        "Gemma3TextConfig",
        _GEMMA | {"layer_types": [_SLIDING, _SLIDING, _FULL]},
        kv_heads=2,
        d_value=16,
        windows=(WINDOW, WINDOW, None),
        notes="query and key norms; a norm after W_O hides a constant factor on v or z",
    ),
    _family("gpt2", "GPT2Config", _BASE, bridge="JointQKVAttentionBridge", left_padding=False),
    _family("gpt_neox", "GPTNeoXConfig", _NEOX, bridge=_JOINT_ROTARY, prepends_bos=False),
    _family(
        "opt",
        "OPTConfig",
        _BASE | {"word_embed_proj_dim": 32, "ffn_dim": 64},
        bridge="AttentionBridge",
        scores="pattern",
        notes="scaling=1 reaches the interface (q is scaled before); positions come from the mask",
    ),
    _family("phi3", "Phi3Config", _PHI3, kv_heads=2, bridge=_JOINT_ROTARY),
    _family("olmo2", "Olmo2Config", _LLAMA, kv_heads=2, notes="a norm follows W_O, none precedes q, k, v"),
    _family("falcon", "FalconConfig", _BASE, path="fallback", kv_heads=1, bridge=_JOINT_ROTARY),
    _family(
        "falcon_alibi",
        "FalconConfig",
        _BASE | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        path="fallback",
        bridge="ALiBiJointQKVAttentionBridge",
        notes="scores = (q k + alibi) / sqrt(d) + mask: the ALiBi term is scaled",
    ),
    _family(
        "bloom",
        "BloomConfig",
        _SIZE,
        path="fallback",
        bridge="BloomAttentionBridge",
        residual_in_output=True,
        prepends_bos=False,
        notes="scores = alibi + q k / sqrt(d) + mask; cfg.n_ctx is always 2048",
    ),
    _family("gptj", "GPTJConfig", _GPTJ, path="fallback", bridge="AttentionBridge", scores="pattern"),
    _family("mixtral", "MixtralConfig", _MIXTRAL, kv_heads=2),
    _family(
        "gpt_oss",
        "GptOssConfig",
        _MIXTRAL
        | {"num_hidden_layers": 3, "head_dim": 8, "sliding_window": WINDOW}
        | {"layer_types": [_SLIDING, _FULL, _SLIDING]},
        kv_heads=2,
        windows=(WINDOW, None, WINDOW),
        sink=True,
        notes="scores leave the sink out, so softmax(scores) is not the pattern; dead rows are all 0",
    ),
    _family(
        "qwen3_next",
        "Qwen3NextConfig",
        _LLAMA | _EXPERTS | _QWEN3_NEXT | _LINEAR_DIMS | _LINEAR_HEADS,
        path="mixed",
        windows=(None, None, None, None),
        attention_layers=(3,),
        kv_heads=2,
        hook_z="gated",
        prepends_bos=False,
        notes="layers 0-2 are blocks[i].linear_attn; hook_q is [batch pos 8 d_head] (query and gate)",
    ),
    _family(
        "mamba",
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.02},
        path="none",
        attention_layers=(),
        kv_heads=0,
        d_value=0,
        bridge="",
        scores="none",
        w_o="none",
        notes="cfg says n_heads=1 and n_ctx=2048, both made up",
    ),
    _family(
        "mpt",
        "MptConfig",
        _SIZE | {"max_seq_len": N_CTX},
        path="fallback",
        bridge="MPTALiBiAttentionBridge",
        prepends_bos=False,
        notes="the mask that reaches the module is bool, True where hidden",
    ),
    _family(
        "gpt_neo",
        "GPTNeoConfig",
        _GPT_NEO | {"hidden_size": 32, "num_layers": 2, "num_heads": HEADS, "max_position_embeddings": N_CTX},
        path="fallback",
        windows=(None, WINDOW),
        bridge="AttentionBridge",
        scores="pattern",
        left_padding=False,
        notes="no 1/sqrt(d); a dead row i is uniform over keys 0..i; layer_id, not layer_idx",
    ),
    _family(
        "codegen",
        "CodeGenConfig",
        _GPTJ | {"n_ctx": N_CTX},
        path="fallback",
        bridge="CodeGenAttentionBridge",
        notes="the mask is added before the division: hidden scores are finfo.min / sqrt(d)",
    ),
    _family("stablelm", "StableLmConfig", _LLAMA, kv_heads=2),
    _family("cohere", "CohereConfig", _LLAMA | {"logit_scale": 1.0}, kv_heads=2),
    _family("phi", "PhiConfig", _LLAMA, kv_heads=2, prepends_bos=False),
    _family("qwen3_moe", "Qwen3MoeConfig", _LLAMA | _EXPERTS | {"head_dim": 8}, kv_heads=2, prepends_bos=False),
    _family(
        "deepseek_v3",
        "DeepseekV3Config",
        _LLAMA
        | {"num_key_value_heads": HEADS, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
        | _MLA
        | _DEEPSEEK_MOE,
        d_value=12,
        bridge="MLAAttentionBridge",
        hook_v="head",
        hook_z="mis-split",
        w_o="after a forward",
        notes="cfg.d_head is the rotary width; attn.W_V raises; hook_z is [batch pos 12 4], 4 heads of 12",
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
"""Every family that boots and whose bridge agrees with Hugging Face."""

BROKEN: dict[str, Family] = {
    "falcon_gqa": _family(
        "falcon_gqa",
        "FalconConfig",
        _BASE | {"new_decoder_architecture": True, "num_kv_heads": 2, "multi_query": False},
        path="fallback",
        kv_heads=2,
        bridge=_JOINT_ROTARY,
        notes="Falcon-40B: the bridge cuts the fused weight in the wrong places, so its logits are wrong "
        "(with multi_query=True, the default, booting raises instead)",
    )
}
"""Families whose bridge is wrong in TransformerLens 4.3: a tool must not give numbers for them."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte after ``<s> </s> <unk> <pad>``; adds no BOS unless told to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=N_CTX,
    )


def enliven(model: PreTrainedModel, gain: float = 12.0, seed: int = 0) -> None:
    """Make attention uneven and every term count, in place: see the module's docstring."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            parts = set(name.split("."))
            in_attention = bool(parts & {"self_attn", "attn", "attention", "self_attention"})
            if parts & {"A_log", "conv1d", "dt_proj", "dt_bias"}:
                continue  # state-space dynamics are unstable when scaled
            if "sinks" in parts:
                weight.copy_(torch.tensor(SINKS))
            elif weight.ndim == 1:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
                if in_attention and "norm" in name.rsplit(".", 2)[-2]:
                    weight.add_(1.0)  # query and key norms undo the gain below, so they carry their own
            else:
                weight.mul_(gain if in_attention else 4.0)


@aside()
def build_checkpoint(name: str, directory: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write config.json, model.safetensors and tokenizer.json of a family; leaves the global random state."""
    directory = Path(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = _find(name).make_config()
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    enliven(model)
    model.to(dtype).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def checkpoint(name: str, cache_dir: str | Path) -> Path:
    """``build_checkpoint`` under ``cache_dir``, once."""
    directory = Path(cache_dir) / name
    if not (directory / "tokenizer.json").exists():  # written last
        build_checkpoint(name, directory)
    return directory


@functools.cache
@aside()
def boot(name: str, cache_dir: str | Path) -> TransformerBridge:
    """The family's bridge, fp32 on the CPU, built on first use and then shared: leave it as you found it."""
    bridge = TransformerBridge.boot_transformers(str(checkpoint(name, cache_dir)), device="cpu", dtype=torch.float32)
    bridge.eval()
    return bridge


@functools.cache
@aside()
def boot_hf(name: str, cache_dir: str | Path) -> PreTrainedModel:
    """The same weights as a plain Hugging Face model with eager attention, the reference for logits."""
    model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint(name, cache_dir), attn_implementation="eager", dtype=torch.float32
    )
    model.eval()
    return model


def random_ids(batch: int = 2, pos: int = 40, seed: int = 1) -> torch.Tensor:
    """Random byte tokens ``[batch pos]`` without special ones."""
    return torch.randint(N_SPECIAL, VOCAB, (batch, pos), generator=torch.Generator().manual_seed(seed))


def padding_mask(batch: int, pos: int, n_pad: int, side: Literal["left", "right"]) -> torch.Tensor:
    """A 0/1 mask ``[batch pos]`` that pads only the last sequence, by ``n_pad`` positions."""
    mask = torch.ones(batch, pos, dtype=torch.long)
    mask[-1, slice(0, n_pad) if side == "left" else slice(pos - n_pad, pos)] = 0
    return mask


def _find(name: str) -> Family:
    return FAMILIES.get(name) or BROKEN[name]
