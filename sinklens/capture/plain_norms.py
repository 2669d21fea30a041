"""Norms without what nobody looks at: a bridge computes each once more for its inner hooks, hooked or not."""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import NormalizationBridge

from sinklens.capture.forwards import forwards
from sinklens.models.parts import parts_of


def plain_norms(model: TransformerBridge) -> AbstractContextManager[None]:
    """Let norms whose ``hook_scale`` and ``hook_normalized`` have no hook run as the architecture wrote them.

    Their output is the same to the bit, because that is what the bridge returns where no hook edits; norms that the
    bridge computes itself, or that are watched, stay as they are.

    Cost: one walk over the model.
    """
    norms = (part for part in parts_of(model) if isinstance(part, NormalizationBridge) and _only_passes_on(part))
    return forwards((norm, partial(_plain, norm)) for norm in [*norms])


def _only_passes_on(norm: Any) -> bool:
    native = norm.use_native_layernorm_autograd or getattr(norm.config, "layer_norm_folding", False)
    known = type(norm).forward is NormalizationBridge.forward
    own = norm.original_component is not None and not isinstance(norm.original_component, nn.Identity)
    free = "forward" not in norm.__dict__ and not _hooked(norm.hook_scale) and not _hooked(norm.hook_normalized)
    return bool(native and known and own and free)


def _hooked(point: HookPoint) -> bool:
    ours = point.fwd_hooks or point.bwd_hooks
    return bool(ours or point._forward_hooks or point._forward_pre_hooks or point._backward_hooks)


def _plain(norm: Any, hidden_states: Tensor) -> Tensor:
    states = norm.hook_in(hidden_states)
    found: Tensor = norm.original_component(states)
    out: Tensor = norm.hook_out(found.to(states.dtype))
    return out
