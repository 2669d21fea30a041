"""Runs a bridge with sinklens' own attention inside, so that every layer can be measured and edited exactly.

Inside ``with AttentionEngine(...)`` each attention bridge delegates to its original Hugging Face module and
that module dispatches to :func:`sinklens.attention.kernel.attend` through
``transformers.AttentionInterface``. Hooks on the residual stream, the MLP and the attention output go on
firing. Architectures that do not dispatch there are measured through the bridge's own hooks instead (see
:mod:`sinklens.attention.fallback`), one layer of T x T at a time. On exit, and on any exception, the bridge
is what it was before.
"""

import time
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from sinklens.attention.extra_pass import attend_with_pass, form_for
from sinklens.attention.fallback import hook_layers
from sinklens.attention.fused import fused
from sinklens.attention.kernel import AttentionCall, Edit, attend
from sinklens.attention.kernel_choice import Kernel, chosen
from sinklens.attention.masks import lazy_mask, real_rows
from sinklens.attention.statistics import Statistic, StatisticFactory
from sinklens.attention.turns import Turn, engine_of, turn
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.models.architecture import attention_layers

IMPLEMENTATION = "sinklens"

EDITED_FROM = 4096
"""Keys from which on an edited pass without statistics runs in fused attention, where that can carry the edit."""

LayerListener = Callable[[int, Tensor, list[Statistic]], None]
"""Called after each layer's attention with index, values ``[batch kv_head k_pos d_value]``, statistics."""


class AttentionEngine:
    """Context manager that measures and edits the attention of a bridge.

    Example::

        with AttentionEngine(model, statistics=[ReceivedMass], on_layer=collect):
            model(ids)

    Args:
        model: The bridge; it is changed only inside ``with``.
        path: ``"fast"`` (AttentionInterface) or ``"fallback"`` (hooks);
            :func:`sinklens.attention.plan.plan_for` finds out which one is exact for a model.
        statistics: Factories, called with the shape of each layer's call.
        edits: Changes applied to every layer; an edit sees ``block.shape.layer`` and may skip.
        observers: Look at each layer's call and at its finished output, see :class:`~sinklens.attention.Observer`.
        edited: Layers that ``edits`` touch: where nothing is measured either, torch's fused attention computes the
            others. ``None``: every layer runs in sinklens' own kernel, so that an edit without effect changes no bit.
        on_layer: Listener that receives each finished layer, in the order of execution.
        real: Which positions are real tokens ``[batch pos]``; padding rows get weight 0.
        skipped: Layers that the caller keeps from running; every other layer has to call the engine.
        kernel: ``"blocks"`` or ``"extra pass"``; default: what :func:`~sinklens.attention.plan_for` found.
        compared: Whether outputs are compared with those of another pass, edited or not: then what is measured has no
            say in how they are computed, and an edit without effect changes no bit. Without it, measured passes may
            run in compiled code or beside fused attention, which round differently.

    Raises:
        UnsupportedArchitectureError: After a forward pass in which some attention layer never reached the
            engine, or reached it twice: its numbers would be wrong.
        InputError: After a forward pass on the fast path in which a hook point of an attention bridge carried
            a hook and did not fire (``hook_pattern``, ``hook_attn_scores``, rotated queries and keys, and
            with a fused QKV projection ``hook_q``, ``hook_k``, ``hook_v``, sometimes ``hook_z``); or when an
            engine is open already.
    """

    differentiable = False
    """Whether :meth:`attend` keeps gradients; this one does not."""

    def __init__(
        self,
        model: TransformerBridge,
        *,
        path: str = "fast",
        statistics: Sequence[StatisticFactory] = (),
        edits: Sequence[Edit] = (),
        observers: Sequence[Any] = (),
        edited: Collection[int] | None = None,
        on_layer: LayerListener | None = None,
        real: Tensor | None = None,
        skipped: Collection[int] = (),
        kernel: Kernel | None = None,
        compared: bool = False,
    ) -> None:
        if path not in ("fast", "fallback", "none"):
            raise InputError(f'path must be "fast", "fallback" or "none", got {path!r}; plan_for(model) knows it.')
        self.model = model
        self.path = path
        self.statistics = tuple(statistics)
        self.edits = tuple(edits)
        self.observers = tuple(observers)
        self.edited = None if edited is None else frozenset(edited)
        self.on_layer = on_layer
        self.real = real
        self.skipped = frozenset(skipped)
        self.kernel: Kernel = kernel or chosen(model)
        self.compared = compared
        self._real_rows: dict[tuple[int, int, torch.device], Tensor | None] = {}
        self.calls: list[int] = []
        self.seconds = 0.0  # in the kernel so far; a GPU works on after the call returns
        self.layers = attention_layers(model)
        self._layer_of = {id(attn.original_component): layer for layer, attn in self.layers.items()}
        self._stack: ExitStack | None = None
        self._silent: dict[torch.nn.Module, Any] = {}  # points with hooks that have not fired this time

    def __enter__(self) -> "AttentionEngine":
        with ExitStack() as stack:
            mine = stack.enter_context(turn(self.model))
            if mine.engine is not None:
                raise InputError("An AttentionEngine is already open on this model; close it before opening another.")
            stack.enter_context(_announced(self, mine))
            if self.path == "fast":
                stack.enter_context(_implementation(self.model))
                stack.enter_context(delegated(self.layers.values()))
                stack.callback(self._forget_hooks)
            else:
                hooked = hook_layers(self.model, self.statistics, self.edits, self.observers, self.real, self.finish)
                stack.enter_context(hooked)
            handle = self.model.original_model.register_forward_pre_hook(self._begin)
            stack.callback(handle.remove)
            checker = self.model.original_model.register_forward_hook(self._check)
            stack.callback(checker.remove)
            self._stack = stack.pop_all()  # only a complete set-up outlives this block; half of one is undone by it
        return self

    def __exit__(self, *exception: object) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def _begin(self, *_: Any) -> None:
        self.calls = []  # by forward pass: generation runs many inside one ``with``
        self._forget_hooks()
        if self.path == "fast":
            # a hook on something that this path never computes would be dropped without a word; a point that carries
            # hooks is therefore watched until it fires, and what is still silent at the end is refused
            for attention in self.layers.values():
                for point in attention.modules():
                    if isinstance(point, HookPoint) and point.fwd_hooks:
                        self._silent[point] = point.register_forward_hook(self._fired)

    def _fired(self, point: torch.nn.Module, *_: Any) -> None:
        handle = self._silent.pop(point, None)
        if handle is not None:
            handle.remove()

    def _forget_hooks(self) -> None:
        while self._silent:
            self._silent.popitem()[1].remove()

    def _check(self, *_: Any) -> None:
        if self._silent:
            names = ", ".join(str(getattr(point, "name", "?")) for point in self._silent)
            raise InputError(
                f"The hook on {names} was ignored: the fast path never computes what it watches, so the "
                "numbers would not include its effect. Remove it, or make the change with an intervention."
            )
        expected = sorted(self.layers.keys() - self.skipped)
        if sorted(self.calls) != expected:  # lists, so that a layer that called twice shows as well
            raise UnsupportedArchitectureError(
                f"Expected one attention call for each of the {len(expected)} attention layers of "
                f"{self.model.cfg.architecture}, got calls for layers {sorted(self.calls)}; its numbers "
                "would be wrong, so none are given. It is no model for the fast path: please report its config."
            )

    def attend(self, call: AttentionCall) -> Tensor:
        """Measure and edit one layer; called by the registered attention function.

        A subclass that computes the output in another way ends with :meth:`finish`.
        """
        for edit in self.edits:
            if hasattr(edit, "edit_call"):
                call = edit.edit_call(call)
        value_edits: list[Any] = [edit for edit in self.edits if hasattr(edit, "edit_values")]
        if value_edits:
            # the values may be the KV cache itself, which must keep the unedited ones for the next step
            call = replace(call, value=call.value.clone())
            for edit in value_edits:
                edit.edit_values(call.shape, call.value)
        statistics = [make(call.shape) for make in self.statistics]
        # fused kernels round differently, so a layer may take one only where nothing is compared with an edited run
        own = bool(statistics) or self.edited is None or call.layer in self.edited
        started = time.perf_counter()
        output = self._computed(call, statistics) if own else fused(call)
        self.seconds += time.perf_counter() - started
        output_edits: list[Any] = [edit for edit in self.edits if hasattr(edit, "edit_output")]
        for edit in output_edits:
            edit.edit_output(call.shape, output)
        observers: list[Any] = list(self.observers)
        for observer in observers:
            if hasattr(observer, "observe"):
                observer.observe(call)
            if hasattr(observer, "observe_output"):
                observer.observe_output(call.shape, output)
        self.finish(call.layer, call.value, statistics)
        return output

    def _computed(self, call: AttentionCall, statistics: list[Statistic]) -> Tensor:
        """One layer in the kernel that takes it.

        Passes before and after an edit are compared where nothing is measured or the caller says so, and two kernels
        round differently: there fused attention is for edits of scores in long texts alone.
        """
        free = bool(statistics) and not self.compared
        long = any(hasattr(edit, "edit_scores") for edit in self.edits) and call.shape.k_pos >= EDITED_FROM
        if self.kernel == "extra pass" and (free or long):
            form = form_for(call, statistics, self.edits)
            if not isinstance(form, str):
                return attend_with_pass(call, form, statistics)
        return attend(call, statistics, self.edits, compiled=free)

    def finish(self, layer: int, value: Tensor, statistics: list[Statistic]) -> None:
        """Note that a layer is done, and hand it to the listener.

        Args:
            layer: Block index.
            value: Its value states, ``[batch kv_head k_pos d_value]``.
            statistics: What was measured.
        """
        self.calls.append(layer)
        if self.on_layer is not None:
            self.on_layer(layer, value, statistics)

    def real_of(self, batch: int, q_pos: int, device: torch.device) -> Tensor | None:
        """Which query rows of a call are real, ``None`` where all are; looked up once and not by every layer."""
        key = batch, q_pos, device
        if key not in self._real_rows:
            rows = real_rows(self.real, batch, q_pos, device)
            self._real_rows[key] = None if rows is None or bool(rows.all()) else rows
        return self._real_rows[key]

    def has(self, module: torch.nn.Module) -> bool:
        """Whether a Hugging Face attention module is one of this model's."""
        return id(module) in self._layer_of

    def layer_of(self, module: torch.nn.Module) -> int:
        """Block index of a Hugging Face attention module of this model."""
        layer = self._layer_of.get(id(module))
        if layer is None:
            raise UnsupportedArchitectureError(
                f"{type(module).__name__} called the engine but is not the attention of any block of "
                f"{self.model.cfg.architecture}; cross-attention and nested attention are not measured."
            )
        return layer


def _interface(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function registered with transformers; returns ``[batch q_pos head d_value]`` and no weights."""
    engine: AttentionEngine | None = engine_of(module)
    if engine is None:
        raise InputError(
            "The sinklens attention was called outside of an AttentionEngine: by another thread or task than the one "
            "that measures this model. Wait until that is done, or load the model a second time."
        )
    if (
        not engine.differentiable
        and torch.is_grad_enabled()
        and (query.requires_grad or key.requires_grad or value.requires_grad)
    ):
        raise InputError("The attention engine keeps no gradients; run it under torch.no_grad().")
    if dropout:
        raise InputError("The model is in training mode with attention dropout; call model.eval() first.")
    # some architectures say for each call whether it is causal, the others once for the module
    causal = kwargs.get("is_causal")
    position_bias = kwargs.get("position_bias")
    call = AttentionCall(
        layer=engine.layer_of(module),
        query=query,
        key=key,
        value=value,
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        mask=attention_mask,
        causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
        soft_cap=kwargs.get("softcap"),
        sink_logits=kwargs.get("s_aux"),
        bias=position_bias,
        real=engine.real_of(query.shape[0], query.shape[2], query.device),
    )
    return engine.attend(call).transpose(1, 2).contiguous(), None


@contextmanager
def _announced(engine: AttentionEngine, mine: Turn) -> Iterator[None]:
    """Let transformers' attention modules find the engine: their table of functions hands on no object of ours."""
    mine.engine = engine
    try:
        yield
    finally:
        mine.engine = None


@contextmanager
def _implementation(model: TransformerBridge) -> Iterator[None]:
    """Point the Hugging Face attention modules at :func:`_interface` and :func:`lazy_mask`."""
    # both stay in transformers' tables for good: without a config that names them nothing finds them
    AttentionInterface.register(IMPLEMENTATION, _interface)
    ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, lazy_mask)
    changed: list[tuple[Any, Any]] = []
    try:
        for config in _configs(model.original_model):
            # not by the public setter: it writes over the sub-configs too, and their own values would be lost
            changed.append((config, config._attn_implementation_internal))
            config._attn_implementation_internal = IMPLEMENTATION
        yield
    finally:
        for config, implementation in changed:
            config._attn_implementation_internal = implementation


@contextmanager
def delegated(attentions: Iterable[AttentionBridge]) -> Iterator[None]:
    """Point attention bridges at their Hugging Face modules."""
    overridden: list[AttentionBridge] = []
    try:
        for attention in attentions:
            # nn.Module.__setattr__ of the bridge would hand a plain assignment on to the original component
            delegate = types.MethodType(AttentionBridge.forward, attention)
            object.__setattr__(attention, "forward", delegate)
            overridden.append(attention)
        yield
    finally:
        for attention in overridden:
            attention.__dict__.pop("forward", None)


def _configs(model: torch.nn.Module) -> list[Any]:
    """Every distinct transformers config that a module of the model reads, sub-configs included."""
    found: dict[int, Any] = {}

    def add(config: Any) -> None:
        if not hasattr(config, "_attn_implementation_internal") or id(config) in found:
            return
        found[id(config)] = config
        for name in getattr(config, "sub_configs", {}):
            add(getattr(config, name, None))

    for module in model.modules():
        add(getattr(module, "config", None))
    return list(found.values())
