"""Changes torch so that a pretend GPU is there; done once, for the whole process."""

import ctypes
import importlib
import os
import threading
import types
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from tests.pretend_cuda import tensor
from tests.pretend_cuda.aside import aside
from tests.pretend_cuda.rules import SAME, DeviceFault
from tests.pretend_cuda.tensor import GpuTensor, PretendMode

FREE, TOTAL = 8 << 30, 16 << 30
"""Bytes that the pretend GPU says are free, and has."""

_real_flex = flex.flex_attention
_real_sdpa = torch.nn.functional.scaled_dot_product_attention
_applying = threading.local()


def install(guard: ctypes.CDLL, devices: int) -> None:
    """Put ``devices`` pretend GPUs into this process."""
    importlib.import_module("torch._dynamo")  # looks at the real torch.cuda while it loads
    guard.pretend_install(devices)  # once more: torch has registered its own since
    tensor.current, tensor.device_count = guard.pretend_current, devices
    torch._C._set_only_lift_cpu_tensors(True)
    _set_torch_cuda(guard, devices)
    torch.Tensor.pin_memory = lambda self, device=None: self  # type: ignore[method-assign,assignment]
    torch.nn.functional.scaled_dot_product_attention = _sdpa
    torch._C._nn.scaled_dot_product_attention = _sdpa
    flex.flex_attention = _flex
    _replace_parameters()
    bootstrap = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]

    def with_mode(self: threading.Thread) -> None:  # a mode holds for the thread that enters it
        torch._C._set_only_lift_cpu_tensors(True)
        with PretendMode():
            bootstrap(self)

    threading.Thread._bootstrap_inner = with_mode  # type: ignore[attr-defined]
    PretendMode().__enter__()


def _set_torch_cuda(guard: ctypes.CDLL, devices: int) -> None:
    properties = types.SimpleNamespace(
        name="Pretend GPU", major=9, minor=0, total_memory=TOTAL, multi_processor_count=1, warp_size=32
    )
    free = int(os.environ.get("PRETEND_CUDA_FREE", FREE))
    fixed: dict[str, Any] = {
        "is_available": True,
        "device_count": devices,
        "is_initialized": True,
        "_is_compiled": False,
        "get_device_capability": (9, 0),
        "get_device_properties": properties,
        "get_device_name": "Pretend GPU",
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "get_arch_list": ["sm_90"],
        "mem_get_info": (free, TOTAL),
        "memory_stats": {},
        "get_rng_state_all": [],
    }
    zero = "memory_allocated max_memory_allocated memory_reserved max_memory_reserved"
    nothing = "synchronize empty_cache _lazy_init init manual_seed manual_seed_all seed seed_all set_rng_state "
    nothing += "set_rng_state_all reset_peak_memory_stats ipc_collect"
    fixed |= dict.fromkeys(zero.split(), 0) | dict.fromkeys(nothing.split())
    for name, value in fixed.items():
        setattr(torch.cuda, name, lambda *_, _value=value, **__: _value)
    torch.cuda.current_device = guard.pretend_current  # type: ignore[assignment]
    torch.cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()  # type: ignore[assignment]

    def exchange(index: int) -> int:
        before: int = guard.pretend_current()
        if index is not None and index >= 0:
            guard.pretend_set(index)
        return before

    torch.cuda._exchange_device = exchange  # type: ignore[assignment]
    torch.cuda._maybe_exchange_device = lambda index: exchange(index)  # type: ignore[assignment]
    torch.cuda.set_device = lambda device: exchange(torch.device(device).index or 0)  # type: ignore[assignment]


def _replace_parameters() -> None:
    """``Module.to`` makes new parameters, because a wrapper cannot take another one's data; tied ones stay tied."""
    compatible = torch._has_compatible_shallow_copy_type

    def same_kind(a: Tensor, b: Tensor) -> bool:
        either = isinstance(a, GpuTensor) or isinstance(b, GpuTensor)
        return not either and bool(compatible(a, b))

    torch._has_compatible_shallow_copy_type = same_kind
    apply, seen = torch.nn.Module._apply, {}

    def _apply(self: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
        outer = not getattr(_applying, "on", False)
        if outer:
            _applying.on = True
            seen.clear()
        old = dict(self._parameters)
        try:
            apply(self, fn, recurse)
            for key, parameter in old.items():
                if parameter is not None and self._parameters[key] is not parameter:
                    self._parameters[key] = seen.setdefault(id(parameter), (parameter, self._parameters[key]))[1]
        finally:
            if outer:
                _applying.on = False
                seen.clear()
        return self

    torch.nn.Module._apply = _apply  # type: ignore[method-assign,assignment]


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Torch chooses a kernel by device before anything can be intercepted, hence here."""
    tensors = [t for t in (query, key, value, attn_mask) if t is not None]
    if not any(isinstance(t, GpuTensor) for t in tensors):
        return _real_sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if len({t.device for t in tensors}) > 1:
        raise DeviceFault(f"{SAME}: scaled_dot_product_attention on {[str(t.device) for t in tensors]}")
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        with torch.no_grad():
            plain = [None if t is None else tensor.unwrapped(t) for t in (query, key, value, attn_mask)]
            out = _real_sdpa(*plain, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
            return GpuTensor(out, query.device.index)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if enable_gqa:
        group = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(group, -3) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scale
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril().logical_not()
        scores = scores.masked_fill(hidden, float("-inf"))
    if attn_mask is not None:
        bias = (
            attn_mask if attn_mask.dtype != torch.bool else torch.zeros_like(scores).masked_fill(~attn_mask, -torch.inf)
        )
        scores = scores + bias
    return torch.softmax(scores, -1) @ value


def _flex(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
    """FlexAttention cannot be traced under a mode; on the pretend GPU its functions see all indices at once."""
    if not isinstance(query, GpuTensor):
        with aside():
            return _real_flex(query, key, value, **options)
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    scores = (query @ key.transpose(-1, -2)).float() * options["scale"]
    axes = [torch.arange(size, device=query.device) for size in scores.shape]
    b, h, i, j = (axis.view([-1 if place == at else 1 for at in range(4)]) for place, axis in enumerate(axes))
    if options.get("score_mod") is not None:
        scores = options["score_mod"](scores, b, h, i, j)
    seen = options["block_mask"].mask_mod(b, h, i, j)
    scores = scores.masked_fill(~seen, float("-inf"))
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    return (weights @ value.float()).to(value.dtype), flex.AuxOutput(lse=lse)
