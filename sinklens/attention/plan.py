"""Which way of measuring is exact for a model, found out by trying it on a short input once per bridge."""

import warnings
import weakref
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention.delta_logit import DeltaLogit
from sinklens.attention.engine import AttentionEngine, delegated
from sinklens.attention.extra_pass import usable
from sinklens.attention.kernel_choice import Kernel, choose
from sinklens.attention.maps import FullMap
from sinklens.attention.statistics import (
    Distance,
    Entropy,
    MissingMass,
    ReceivedMass,
    Statistic,
    StatisticFactory,
    TopKey,
)
from sinklens.attention.turns import turn
from sinklens.errors import InputError, UnsupportedArchitectureError
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
    finite: bool = True
    """Whether the model's logits for ordinary tokens are numbers."""
    kernel: Kernel = "blocks"
    """What computes statistics on the fast path."""
    kernel_reason: str = ""
    """Why it is that kernel."""


_State = tuple[object, ...]
_Plans = weakref.WeakKeyDictionary[TransformerBridge, tuple[_State, AttentionPlan]]
# weak: a plan is no reason to keep a model in memory, and a new model at the same address must not inherit it
_plans: _Plans = weakref.WeakKeyDictionary()


def plan_for(model: TransformerBridge, *, nonfinite: bool = False) -> AttentionPlan:
    """Find out how this model's attention is measured exactly: tried on first use, and again after weights changed.

    A short random input goes through the bridge as it is and through the engine. The fast path is taken when
    every attention layer called the engine once and patterns and logits agree; otherwise the bridge's own
    hooks are used and a warning says so once. Where those are used, the bridge itself is first compared with
    the Hugging Face modules that it stands for.

    Args:
        model: The bridge.
        nonfinite: Also plan for a model whose logits are NaN or infinite; what is finite of it is compared.

    Cost: two to four forward passes of 48 tokens on first use, almost nothing afterwards.

    Raises:
        InputError: The logits are NaN or infinite, and the caller does not say what then.
        UnsupportedArchitectureError: Neither way reproduces the bridge, or the bridge is not its Hugging Face
        model.
    """
    state = _state(model)
    known, plan = _plans.get(model, (None, None))
    if plan is None or known != state:
        with turn(model):
            plan = _find_plan(model, vetted=plan is not None)
        _plans[model] = state, plan
        choose(model, plan.kernel)
    if not plan.finite and not nonfinite:
        raise InputError(
            "The model gives NaN or infinite logits for ordinary tokens, so nothing can be measured: use intact "
            "weights, and bfloat16 or float32 where float16 overflows."
        )
    return plan


def _state(model: TransformerBridge) -> _State:
    """What changes when attention weights are edited, replaced or processed (compatibility mode).

    A bridge keeps its own copies of fused projections, so the Hugging Face module can then be out of step.
    """
    # torch counts the changes in place of a tensor (`_version`); one made under inference mode has no count
    parameters = [p for attention in attention_layers(model).values() for p in attention.parameters()]
    versions = ((p.data_ptr(), -1 if p.is_inference() else p._version) for p in parameters)
    return (getattr(model, "compatibility_mode", False), *versions)


def _find_plan(model: TransformerBridge, vetted: bool) -> AttentionPlan:
    attentions = attention_layers(model)
    if not attentions:
        return _make(model, "none", "no block has softmax attention")
    ids = _check_input(model)
    # `vetted`: an earlier plan compared the bridge with Hugging Face; weights edited since then may rightly differ
    with torch.no_grad():
        logits, patterns = _reference(model, ids)
        finite = bool(torch.isfinite(logits).all())
        try:
            failure = _compare(model, "fast", ids, logits, patterns)
        except UnsupportedArchitectureError as error:
            failure = str(error)
        except (TypeError, AttributeError, ValueError, IndexError, KeyError, RuntimeError) as error:
            # attention code that bypasses AttentionInterface chokes on the lazy mask in its own way
            failure = f"its attention code does not take the engine's mask ({type(error).__name__}: {error})"
        if failure is None:
            fast = _make(model, "fast", "AttentionInterface; patterns and logits equal the bridge's", finite)
            kernel, reason = _find_kernel(model, ids)
            return replace(fast, kernel=kernel, kernel_reason=reason)
        problem = None if vetted else _differs_from_hugging_face(model, ids, logits)
        problem = problem or _compare(model, "fallback", ids, logits, patterns)
    if problem is not None:
        raise UnsupportedArchitectureError(
            f"No exact way to measure {model.cfg.architecture} was found. Fast path: {failure} Fallback: {problem}"
        )
    warnings.warn(
        f"{model.cfg.architecture} is measured through the bridge's hooks (one layer of T x T at a time), "
        f"because the fast path is not exact for it: {failure}",
        stacklevel=3,
    )
    return _make(model, "fallback", failure, finite)


def _find_kernel(model: TransformerBridge, ids: Tensor) -> tuple[Kernel, str]:
    """The quicker kernel where it can run and gives the statistics of the exact one."""
    reason = usable(ids.device)
    if reason:
        return "blocks", reason
    try:
        worst = _kernel_gap(model, ids)
    except Exception as error:  # compilers of kernels fail in many ways, none of which should cost a measurement
        return "blocks", f"the extra pass does not run here ({type(error).__name__}: {str(error)[:200]})"
    limit = TOLERANCE.get(next(model.parameters()).dtype, LOW_PRECISION_TOLERANCE)
    if not worst <= limit:
        return "blocks", f"the extra pass differs by {worst:.1e} (limit {limit:.0e})"
    return "extra pass", f"Triton; its statistics equal those by blocks ({worst:.0e})"


def _kernel_gap(model: TransformerBridge, ids: Tensor) -> float:
    """Largest difference of a statistic, of its scale; in half precision of the first layer, which sees one input."""
    kinds: list[StatisticFactory] = [ReceivedMass, Entropy, Distance, TopKey, MissingMass, DeltaLogit]
    found: dict[str, dict[int, dict[str, Tensor]]] = {}
    kernels: tuple[Kernel, ...] = ("blocks", "extra pass")
    for kernel in kernels:
        own = found[kernel] = {}

        def take(layer: int, _: Tensor, statistics: list[Statistic], own: dict[int, dict[str, Tensor]] = own) -> None:
            own[layer] = {name: value for each in statistics for name, value in each.compute().items()}

        with AttentionEngine(model, statistics=kinds, on_layer=take, kernel=kernel):
            model(ids)
    layers = list(found["blocks"]) if next(model.parameters()).dtype in TOLERANCE else [min(found["blocks"])]
    gaps = [0.0]
    for layer in layers:
        for name, right in found["blocks"][layer].items():
            value = found["extra pass"][layer][name]
            if name == "top_key":  # near ties are nobody's fault; the weights are compared
                continue
            if not torch.equal(value.isnan(), right.isnan()):
                return float("inf")
            gaps.append(float(((value - right).abs() / (1 + right.abs())).nan_to_num().max()))
    return max(gaps)


def _make(model: TransformerBridge, path: Path, reason: str, finite: bool = True) -> AttentionPlan:
    attentions = attention_layers(model)
    layers = [
        LayerPlan(layer, path, window_of(model, layer), has_learned_sink(model, layer))
        if layer in attentions
        else LayerPlan(layer, "none", None, False)
        for layer in range(len(model.blocks))
    ]
    return AttentionPlan(path, tuple(layers), reason, finite)


def _check_input(model: TransformerBridge) -> Tensor:
    length = min(CHECK_TOKENS, context_length(model) or CHECK_TOKENS)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.cfg.d_vocab, (1, length), generator=generator)
    return ids.to(next(model.parameters()).device)


def _reference(model: TransformerBridge, ids: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits and patterns of the bridge as it is."""
    patterns: dict[int, Tensor] = {}

    def keep(pattern: Tensor, hook: Any, layer: int) -> None:
        patterns[layer] = pattern.detach().float().nan_to_num()

    hooks = [
        (f"blocks.{layer}.attn.hook_pattern", lambda p, hook, layer=layer: keep(p, hook, layer))
        for layer in attention_layers(model)
    ]
    with model.hooks(fwd_hooks=hooks):
        logits = model(ids)
    return logits, patterns


def _differs_from_hugging_face(model: TransformerBridge, ids: Tensor, logits: Tensor) -> str | None:
    """``None`` when the bridge's attention is that of the Hugging Face modules it stands for.

    Weights that compatibility mode has processed have no counterpart there.
    """
    if getattr(model, "compatibility_mode", False):
        return None
    with delegated(attention_layers(model).values()):
        difference = _difference(model, model(ids), logits)
    if difference is None:
        return None
    return f"TransformerLens computes another attention than Hugging Face for this model: {difference}"


def _difference(model: TransformerBridge, measured: Tensor, logits: Tensor) -> str | None:
    """``None`` when two sets of logits agree, or when the dtype is too coarse to tell."""
    limit = TOLERANCE.get(next(model.parameters()).dtype)
    if limit is None:  # half precision: two right ways differ by more than a bound that would find a wrong one
        return None
    finite = torch.isfinite(logits)
    if not bool((torch.isfinite(measured) == finite).all()):
        return "logits are NaN or infinite at other places."
    measured, logits = (each.float().masked_fill(~finite, 0) for each in (measured, logits))
    gap = float((measured - logits).abs().max()) / (1 + float(logits.abs().max()))
    return None if gap <= limit else f"logits differ by {gap:.1e} of their scale (limit {limit:.0e})."


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
    difference = _difference(model, measured_logits, logits)
    if difference is not None:
        return difference
    limit, checked = TOLERANCE.get(next(model.parameters()).dtype), list(worst)
    if limit is None:
        # rounding differences grow with depth (and can flip expert routing), so only the first layer, whose
        # input is the same on both sides, can be held to a bound
        limit, checked = LOW_PRECISION_TOLERANCE, [min(worst)]
    for layer in checked:
        if not worst[layer] <= limit:  # this way round a NaN fails too
            return f"the pattern of layer {layer} differs by {worst[layer]:.1e} (limit {limit:.0e})."
    return None
