"""Interventions done the slow way: each layer's pattern changed as weights, and z written back as pattern @ value."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, FullMap, Statistic, plan_for
from sinklens.interventions import Intervention
from tests.attention import dense
from tests.families import FAMILIES, N_SPECIAL

Change = Callable[[int, Tensor], Tensor]
"""Takes a layer and its pattern [batch head q_pos k_pos] in fp64, returns the changed pattern."""


def logits(bridge: TransformerBridge, name: str, ids: Tensor, change: Change) -> Tensor:
    """Logits with every pattern changed, by TransformerLens hooks in fp64."""
    hooks: list[tuple[str, Any]] = []
    for layer in FAMILIES[name].attention_layers:
        kept: dict[str, Tensor] = {}

        def keep(x: Tensor, hook: Any, what: str, kept: dict[str, Tensor] = kept) -> None:
            kept[what] = x.double()

        def write(z: Tensor, hook: Any, kept: dict[str, Tensor] = kept, layer: int = layer) -> Tensor:
            pattern = kept["pattern"] if name != "opt" else opt_pattern(kept["q"], kept["k"])
            value = kept["v"].transpose(1, 2)
            return dense.output(change(layer, pattern), value).transpose(1, 2).to(z.dtype)

        hooks += [(f"blocks.{layer}.attn.hook_{x}", partial(keep, what=x)) for x in ("q", "k", "v", "pattern")]
        hooks.append((f"blocks.{layer}.attn.hook_z", write))
    with bridge.hooks(fwd_hooks=hooks):
        found: Tensor = bridge(ids)
    return found


def opt_pattern(query: Tensor, key: Tensor) -> Tensor:
    """OPT shows its pattern only after it was used."""
    query, key = query.transpose(1, 2), key.transpose(1, 2)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return dense.pattern(scores, dense.causal(query.shape[2], key.shape[2], batch=len(query)))


def patterns(bridge: TransformerBridge, ids: Tensor, intervention: Intervention | None = None) -> dict[int, Tensor]:
    """Pattern of every layer as the engine measures it, under an intervention or without."""
    found: dict[int, Tensor] = {}

    def collect(layer: int, value: Tensor, statistics: list[Statistic]) -> None:
        found[layer] = statistics[0].compute()["full_map"].nan_to_num().double()

    if intervention is None:
        opened: Any = AttentionEngine(bridge, path=plan_for(bridge).path, statistics=[FullMap], on_layer=collect)
    else:
        opened = intervention(bridge, statistics=[FullMap], on_layer=collect)
    with opened:
        bridge(ids)
    return found


def under(bridge: TransformerBridge, intervention: Intervention, ids: Tensor, **options: Any) -> Tensor:
    """Logits under an intervention."""
    with intervention(bridge):
        found: Tensor = bridge(ids, **options)
    return found


def renormalised(pattern: Tensor) -> Tensor:
    """Rows divided by their sum; rows without weight stay 0."""
    return (pattern / pattern.sum(-1, keepdim=True)).nan_to_num()


def state(bridge: TransformerBridge) -> dict[str, Any]:
    """What an intervention could leave behind: weights, hooks, forwards, the attention implementation."""
    with torch.no_grad():  # a bridge's first pass sets up hooks of its own: no test may depend on which comes first
        bridge(torch.full((1, 2), N_SPECIAL))
    modules = dict(bridge.named_modules())
    return {
        "weights": {name: x.clone() for name, x in bridge.original_model.state_dict().items()},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in modules.items()},
        "root": (len(bridge.original_model._forward_hooks), len(bridge.original_model._forward_pre_hooks)),
        "forwards": [n for n, m in modules.items() if "forward" in m.__dict__],
        "implementation": bridge.original_model.config._attn_implementation_internal,
        "fwd_hooks": [n for n, p in bridge.hook_dict.items() if p.fwd_hooks],
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two states are equal bit for bit."""
    left, right = before["weights"], after["weights"]
    equal = left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
    return equal and all(before[key] == after[key] for key in before if key != "weights")
