"""Facts about a bridge's layers that several rooms need: which have attention, their windows, heads and W_O."""

import re
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

from sinklens.errors import UnsupportedArchitectureError

_QUANTISED = re.compile(r"4bit|8bit|quant|wqlinear|fp4|nf4|hqq|aqlm|gptq|awq", re.IGNORECASE)


def attention_layers(model: TransformerBridge) -> dict[int, AttentionBridge]:
    """Attention bridge of every layer that has softmax attention, by layer index.

    Layers without (state-space, linear or delta-rule mixers) are left out: attention is not applicable there.

    Raises:
        UnsupportedArchitectureError: The bridge has no decoder stack ``blocks``.
    """
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        raise UnsupportedArchitectureError(
            f"Expected a decoder-only model with a stack of layers, got {model.cfg.architecture}; "
            "encoder-decoder and encoder models are not measured."
        )
    found = {}
    for layer, block in enumerate(blocks):
        attention = block._modules.get("attn")
        if isinstance(attention, AttentionBridge):
            found[layer] = attention
    return found


def output_weights(model: TransformerBridge, layer: int) -> Float[Tensor, "head d_value d_model"] | None:
    """``W_O`` of one attention layer by query head, ``None`` when its weights cannot be read (quantised).

    Quantised ones may have the right shape and still be codes, not weights (``Linear8bitLt``).
    """
    try:
        weights: Tensor = attention_layers(model)[layer].W_O
    except (AttributeError, NotImplementedError, ValueError, RuntimeError):
        return None
    return weights if weights.ndim == 3 and weights.is_floating_point() else None


def quantised_layers(model: TransformerBridge) -> dict[int, str]:
    """Layers with attention whose ``W_O`` cannot be read because a module of theirs is quantised: its class name."""
    found = {}
    for layer, attention in attention_layers(model).items():
        if output_weights(model, layer) is None:
            kinds = [type(module).__name__ for module in attention.modules()]
            coded = [
                type(module).__name__
                for module in attention.modules()
                if any(not p.is_floating_point() for p in module.parameters(recurse=False))
            ]
            named = [kind for kind in kinds if _QUANTISED.search(kind)] or coded
            if named:
                found[layer] = named[0]
    return found


def norm_after_attention(model: TransformerBridge, layer: int) -> bool:
    """Whether a norm stands between what the heads write together and the residual stream (Gemma-2 and 3, OLMo-2).

    There ``|W_O v|`` of one head is not what arrives in the stream.
    """
    return "ln1_post" in model.blocks[layer]._modules


def window_of(model: TransformerBridge, layer: int) -> int | None:
    """Sliding-window size of an attention layer in tokens (its own position included), ``None`` for full attention."""
    config: Any = text_config(model)
    attention_types = getattr(config, "attention_layers", None)  # GPT-Neo
    if attention_types is not None:
        return int(config.window_size) if attention_types[layer] == "local" else None
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and "sliding" not in str(layer_types[layer]):
        return None
    return int(window)


def has_learned_sink(model: TransformerBridge, layer: int) -> bool:
    """Whether the layer's softmax has a learned sink logit per head (gpt-oss and kin)."""
    original: Any = attention_layers(model)[layer].original_component
    return getattr(original, "sinks", None) is not None


def text_config(model: TransformerBridge) -> Any:
    """The Hugging Face config of the text decoder."""
    config: Any = model.original_model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def context_length(model: TransformerBridge) -> int | None:
    """Longest sequence the config allows, ``None`` when it names no limit (ALiBi, state-space models)."""
    config = text_config(model)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
