"""Whether the model that transformers builds from a GGUF file is the model that the file describes."""

import math
from collections.abc import Callable
from typing import Any

from sinklens.errors import ModelLoadError
from sinklens.models.gguf.file import GgufFile

# Keys that change what the model computes, below the architecture's prefix. transformers' mapping leaves out some of
# them for some architectures and takes the config's default instead, without a word.
NEUTRAL = {"rope.scaling.type": ("none", "default"), "attention.causal": (True,), "expert_count": (0,)}
FACTORS = ("attention.scale", "logit_scale", "embedding_scale", "residual_scale")


def check_agreement(file: GgufFile, config: Any) -> None:
    """Compare what the file states with the config of the model that was built from it.

    Raises:
        ModelLoadError: They differ, so every number would be another model's.
    """
    for key, read in _READERS.items():
        stated = file.metadata.get(f"{file.architecture}.{key}")
        if stated is None or isinstance(stated, list) or stated in NEUTRAL.get(key, ()):
            continue
        got = read(config)
        if got is None and key in FACTORS and stated == 1:
            continue
        if key == "attention.sliding_window" and got is None and stated >= (_first(config, *_CONTEXT) or math.inf):
            continue  # a window as long as the context hides nothing
        if not _same(stated, got):
            shown = f"{stated:g}" if isinstance(stated, float) else stated
            raise ModelLoadError(
                f"{file.path} states {key} = {shown} and transformers builds the {file.architecture} model with "
                f"{'none' if got is None else got}, so its numbers would be another model's; load the original "
                "Hugging Face directory instead."
            )


def _same(stated: Any, got: Any) -> bool:
    if isinstance(stated, (int, float)) and isinstance(got, (int, float)):
        return math.isclose(float(stated), float(got), rel_tol=1e-5)
    return bool(stated == got)


_CONTEXT = ("max_position_embeddings", "n_positions")


def _first(config: Any, *names: str) -> Any:
    """The first of these attributes that is there and set."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _attribute(*names: str) -> Callable[[Any], Any]:
    return lambda config: _first(config, *names)


def _rope(config: Any) -> dict[str, Any]:
    """Rotary parameters, of the layers with full attention where there are two kinds."""
    parameters = getattr(config, "rope_parameters", None) or {}
    inner = parameters.get("full_attention", parameters)
    return inner if isinstance(inner, dict) else {}


def _head_dim(config: Any) -> int | None:
    head_dim = getattr(config, "head_dim", None)
    if head_dim is not None:
        return int(head_dim)
    width, heads = _first(config, "hidden_size", "n_embd"), _first(config, "num_attention_heads", "n_head")
    return None if width is None or not heads else width // heads


def _rotary_dim(config: Any) -> int | None:
    head_dim = _head_dim(config)
    share = _rope(config).get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    return None if head_dim is None else int(head_dim * (1.0 if share is None else share))


def _scale(config: Any) -> float | None:
    base = getattr(config, "query_pre_attn_scalar", None) or _head_dim(config)
    return None if base is None else float(base**-0.5)


_READERS: dict[str, Callable[[Any], Any]] = {
    "block_count": _attribute("num_hidden_layers", "n_layer"),
    "attention.head_count": _attribute("num_attention_heads", "n_head"),
    "attention.head_count_kv": _attribute("num_key_value_heads", "num_attention_heads", "n_head"),
    "attention.key_length": _head_dim,
    "attention.layer_norm_rms_epsilon": _attribute("rms_norm_eps", "layer_norm_epsilon", "norm_eps"),
    "attention.layer_norm_epsilon": _attribute("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": _attribute("sliding_window"),
    "attention.scale": _scale,
    "rope.freq_base": lambda config: _rope(config).get("rope_theta"),
    "rope.dimension_count": _rotary_dim,
    "rope.scaling.type": lambda config: _rope(config).get("rope_type"),
    "rope.scaling.factor": lambda config: _rope(config).get("factor"),
    "attn_logit_softcapping": _attribute("attn_logit_softcapping"),
    "final_logit_softcapping": _attribute("final_logit_softcapping"),
    "expert_count": _attribute("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": _attribute("num_experts_per_tok"),
    "logit_scale": _attribute("logit_scale", "logits_scaling"),
    "embedding_scale": _attribute("embedding_multiplier"),
    "residual_scale": _attribute("residual_multiplier"),
    "attention.causal": lambda config: True,
}
