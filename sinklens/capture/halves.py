"""What enters each layer and what its attention and its MLP write, through the bridge's own hooks."""

from functools import partial
from typing import Any, Final

from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

_MIXERS: Final = ("attn", "linear_attn", "mamba", "mixer", "ssm")


class BlockHalves:
    """Holds ``before``, ``attention`` and ``mlp`` of each layer until its record is made.

    ``attention`` stands for whatever mixes tokens (a state-space or linear mixer too); a norm that follows it inside
    the layer is part of it. A layer without an MLP has no ``mlp``.
    """

    def __init__(self) -> None:
        self.by_layer: dict[int, dict[str, Float[Tensor, "batch pos d_model"]]] = {}

    def hooks(self, model: TransformerBridge) -> list[tuple[str, Any]]:
        """Hooks for ``model.hooks(fwd_hooks=...)``."""
        hooks: list[tuple[str, Any]] = []
        for layer, block in enumerate(model.blocks):
            names = {"before": "hook_in"}
            mixer = next((name for name in _MIXERS if name in block._modules), None)
            if mixer == "attn":
                names["attention"] = "hook_attn_out"  # after a norm that follows, where there is one
            elif mixer is not None:
                names["attention"] = f"{mixer}.hook_out"
            if "mlp" in block._modules:
                names["mlp"] = "hook_mlp_out"
            for part, name in names.items():
                hooks.append((f"blocks.{layer}.{name}", partial(self._note, layer=layer, part=part)))
        return hooks

    def _note(self, value: Tensor, hook: Any, layer: int, part: str) -> None:
        self.by_layer.setdefault(layer, {})[part] = value
