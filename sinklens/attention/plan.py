"""Which way of measuring is exact for a model, found out by trying it on a short input once per bridge."""

import warnings
import weakref
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention.engine import AttentionEngine
from sinklens.attention.statistics import FullMap, Statistic
from sinklens.errors import UnsupportedArchitectureError
from sinklens.models.architecture import attention_layers, context_length, has_learned_sink, window_of

Path = Literal["fast", "fallback", "none"]

CHECK_TOKENS = 48
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
LOW_PRECISION_TOLERANCE = 0.05


@dataclass(frozen=True)
class LayerPlan:
    """How one block's attention is measured."""

    layer: int
    path: Path
    window: int | None
    learned_sink: bool


@dataclass(frozen=True)
class AttentionPlan:
    """How a model's attention is measured; ``path`` is what :class:`AttentionEngine` takes."""

    path: Path
    layers: tuple[LayerPlan, ...]
    reason: str


_plans: "weakref.WeakKeyDictionary[TransformerBridge, AttentionPlan]" = weakref.WeakKeyDictionary()


def plan_for(model: TransformerBridge) -> AttentionPlan:
    """The exact way to measure this bridge; checked on first use and remembered.

    A short random input goes through the bridge as it is and through the engine. The fast path is taken when every
    attention layer called the engine once and patterns and logits agree; otherwise the bridge's own hooks are used
    and a warning says so once.

    Cost: three forward passes of 48 tokens on first use, nothing afterwards.

    Raises:
        UnsupportedArchitectureError: Neither way reproduces the bridge.
    """
    if model not in _plans:
        _plans[model] = _find_plan(model)
    return _plans[model]


def _find_plan(model: TransformerBridge) -> AttentionPlan:
    attentions = attention_layers(model)
    if not attentions:
        return _make(model, "none", "no block has softmax attention")
    ids = _check_input(model)
    with torch.no_grad():
        logits, patterns = _reference(model, ids)
        try:
            failure = _compare(model, "fast", ids, logits, patterns)
        except UnsupportedArchitectureError as error:
            failure = str(error)
        except (TypeError, AttributeError, ValueError, IndexError, KeyError, RuntimeError) as error:
            # attention code that bypasses AttentionInterface chokes on the lazy mask in its own way
            failure = f"its attention code does not take the engine's mask ({type(error).__name__}: {error})"
        if failure is None:
            return _make(model, "fast", "AttentionInterface; patterns and logits equal the bridge's")
        problem = _compare(model, "fallback", ids, logits, patterns)
    if problem is not None:
        raise UnsupportedArchitectureError(
            f"No exact way to measure {model.cfg.architecture} was found: fast path: {failure} Fallback: {problem}"
        )
    warnings.warn(
        f"{model.cfg.architecture} is measured through the bridge's hooks (one layer of T x T at a time), because the "
        f"fast path is not exact for it: {failure}",
        stacklevel=3,
    )
    return _make(model, "fallback", failure)


def _make(model: TransformerBridge, path: Path, reason: str) -> AttentionPlan:
    attentions = attention_layers(model)
    layers = [
        LayerPlan(layer, path, window_of(model, layer), has_learned_sink(model, layer))
        if layer in attentions
        else LayerPlan(layer, "none", None, False)
        for layer in range(len(model.blocks))
    ]
    return AttentionPlan(path, tuple(layers), reason)


def _check_input(model: TransformerBridge) -> Tensor:
    length = min(CHECK_TOKENS, context_length(model) or CHECK_TOKENS)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.cfg.d_vocab, (1, length), generator=generator)
    return ids.to(next(model.parameters()).device)


def _reference(model: TransformerBridge, ids: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits and patterns of the bridge as it is."""
    patterns: dict[int, Tensor] = {}

    def keep(pattern: Tensor, hook: Any, layer: int) -> None:
        patterns[layer] = pattern.detach().float()

    hooks = [
        (f"blocks.{layer}.attn.hook_pattern", lambda p, hook, layer=layer: keep(p, hook, layer))
        for layer in attention_layers(model)
    ]
    with model.hooks(fwd_hooks=hooks):
        logits = model(ids)
    return logits, patterns


def _compare(
    model: TransformerBridge, path: str, ids: Tensor, logits: Tensor, patterns: dict[int, Tensor]
) -> str | None:
    """``None`` when this path gives the bridge's patterns and logits, else what differs."""
    worst: dict[int, float] = {}

    def compare(layer: int, values: Tensor, statistics: list[Statistic]) -> None:
        measured = statistics[0].compute()["full_map"].nan_to_num()
        worst[layer] = float((measured - patterns[layer].to(measured.device)).abs().max())

    with AttentionEngine(model, path=path, statistics=[FullMap], on_layer=compare):
        measured_logits = model(ids)
    dtype = next(model.parameters()).dtype
    if dtype in TOLERANCE:
        limit = TOLERANCE[dtype]
        scale = 1 + float(logits.float().abs().max())
        gap = float((measured_logits - logits).float().abs().max()) / scale
        if not gap <= limit:
            return f"logits differ by {gap:.1e} of their scale (limit {limit:.0e})."
        checked = list(worst)
    else:
        # rounding differences grow with depth (and can flip expert routing), so only the first layer, whose input
        # is the same on both sides, can be held to a bound
        limit, checked = LOW_PRECISION_TOLERANCE, [min(worst)]
    for layer in checked:
        if not worst[layer] <= limit:
            return f"the pattern of layer {layer} differs by {worst[layer]:.1e} (limit {limit:.0e})."
    return None
