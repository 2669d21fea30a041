"""Which attention hooks of TransformerLens change a model when edited: some show copies, and edits are lost."""

import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention.turns import turn
from sinklens.models.architecture import attention_layers

HOOKS = ("hook_attn_scores", "hook_pattern", "hook_v", "hook_z")
TOKENS = 12

_known: "weakref.WeakKeyDictionary[TransformerBridge, dict[str, bool | None]]" = weakref.WeakKeyDictionary()


@torch.no_grad()
def live_hooks(model: TransformerBridge) -> dict[str, bool | None]:
    """Whether an edit of each attention hook reaches the logits; tried out, once per bridge.

    On the generic attention bridges of TransformerLens 4.3 (OPT, and Llama opened from some directories)
    ``hook_pattern`` and ``hook_attn_scores`` show copies: ``run_with_hooks`` with an edit of them changes nothing, and
    says nothing.

    Returns:
        By name: True (the logits changed), False (the edit was dropped), None (no such hook fired).

    Cost: five forward passes of 12 tokens.
    """
    if model not in _known:
        layers = list(attention_layers(model))
        ids = torch.randint(0, model.cfg.d_vocab, (1, TOKENS), generator=torch.Generator().manual_seed(0))
        ids = ids.to(next(model.parameters()).device)
        with turn(model):
            plain: Any = model(ids)
            _known[model] = {name: _reaches_logits(model, ids, plain, name, layers) for name in HOOKS}
    return dict(_known[model])


def _reaches_logits(model: TransformerBridge, ids: Tensor, plain: Tensor, name: str, layers: list[int]) -> bool | None:
    fired: list[int] = []

    def change(value: Tensor, hook: Any, layer: int) -> Tensor:
        fired.append(layer)
        # uneven, so that no softmax and no norm undoes it; hidden keys stay hidden
        return value * torch.linspace(0.2, 1.8, value.shape[-1], device=value.device, dtype=value.dtype)

    hooks: list[tuple[Any, Any]] = [(f"blocks.{layer}.attn.{name}", partial(change, layer=layer)) for layer in layers]
    present = [(where, edit) for where, edit in hooks if where in model.hook_dict]
    if not present:
        return None
    edited: Any = model.run_with_hooks(ids, fwd_hooks=present)
    return bool((edited - plain).abs().max() > 0) if fired else None
