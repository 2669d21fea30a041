"""Rotary embeddings whose frequencies depend on how long the input is: one length at a time, and no memory of the last.

``dynamic`` (NTK by length) computes its frequencies from the longest text of a batch, ``longrope`` (Phi-3) takes one of
two sets by it. In a batch with a long text a short one would get other positions than alone, so their numbers would
depend on their neighbours.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from sinklens.models.parts import parts_of
from sinklens.models.token_batch import TokenBatch


def forward_passes(model: TransformerBridge, batch: TokenBatch, batch_size: int) -> Iterator[slice]:
    """Consecutive sequences to run together: at most ``batch_size``, and none that would change another's positions.

    For most models these are plain slices of ``batch_size``.
    """
    lengths = batch.lengths.tolist()
    regimes = [_regime(model, length) for length in lengths] if length_types(model) else [0] * len(lengths)
    start = 0
    while start < len(lengths):
        stop = start + 1
        while stop < min(start + batch_size, len(lengths)) and regimes[stop] == regimes[start]:
            stop += 1
        yield slice(start, stop)
        start = stop


def length_types(model: TransformerBridge) -> dict[str, int]:
    """Rope types of a model that depend on the length, with the length up to which they do not; empty for most."""
    found = {}
    for module in _rotary(model.original_model):
        config: Any = module.config
        for kind, parameters in _by_layer_type(module, config):
            if "dynamic" in kind or kind == "longrope":
                original = parameters.get("original_max_position_embeddings") or module.original_max_seq_len
                found[kind] = int(original)
    return found


def forget_lengths(model: nn.Module) -> None:
    """Make every forward pass compute its frequencies anew, as in a freshly loaded model.

    transformers keeps those of the longest input so far, so that a text of 200 tokens after one of 300 is measured with
    the frequencies of 300.
    """
    for module in _rotary(model):
        if any("dynamic" in kind for kind, _ in _by_layer_type(module, module.config)):
            module.register_forward_pre_hook(_reset)


def _reset(module: Any, args: Any) -> None:
    kinds = module.rope_type if isinstance(module.rope_type, dict) else {None: module.rope_type}
    for layer_type, kind in kinds.items():
        if "dynamic" in kind:
            prefix = "" if layer_type is None else f"{layer_type}_"
            original = getattr(module, f"{prefix}original_inv_freq")
            setattr(module, f"{prefix}inv_freq", original.to(getattr(module, f"{prefix}inv_freq").device))
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _regime(model: TransformerBridge, length: int) -> tuple[int, ...]:
    """What a length has in common with those that rotate alike."""
    return tuple(
        max(length, original) if "dynamic" in kind else int(length > original)
        for kind, original in length_types(model).items()
    )


def _rotary(model: nn.Module) -> list[Any]:
    return [module for module in parts_of(model) if hasattr(module, "rope_type") and hasattr(module, "config")]


def _by_layer_type(module: Any, config: Any) -> list[tuple[str, dict[str, Any]]]:
    parameters = getattr(config, "rope_parameters", None) or {}
    if isinstance(module.rope_type, dict):
        return [(kind, parameters.get(layer_type, {})) for layer_type, kind in module.rope_type.items()]
    return [(str(module.rope_type), parameters)]
