"""The tensors of the pretend GPU: wrappers that report a CUDA device around a CPU tensor that computes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretend_cuda import counts, rules

CPU = torch.device("cpu")
current: Callable[[], int] = lambda: 0  # noqa: E731  (the guard's own, once installed)
device_count = 1


class GpuTensor(Tensor):
    """A tensor on a pretend GPU; ``elem`` is the CPU tensor behind it."""

    elem: Tensor

    @staticmethod
    def __new__(cls: Any, elem: Tensor, index: int = 0, requires_grad: bool = False) -> "GpuTensor":
        out: GpuTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=torch.device("cuda", index),
            requires_grad=requires_grad,
        )
        out.elem = elem
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Gpu({self.elem!r})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        is_parameter = isinstance(self, torch.nn.Parameter)
        return _rebuilt, (self.elem.detach(), self.device.index, self.requires_grad, is_parameter)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            with torch.no_grad():
                copy = self.elem.clone()
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = _rebuilt(copy, self.device.index, self.requires_grad, is_parameter)
        return memo[id(self)]

    def untyped_storage(self) -> Any:
        """The memory behind it, which is the CPU's."""
        return self.elem.untyped_storage()

    def data_ptr(self) -> int:
        """Where the memory behind it lies."""
        return self.elem.data_ptr()

    def cuda(self, device: Any = None, **_: Any) -> Tensor:
        """Itself, or a copy on another of the pretend GPUs."""
        return self if device is None else self.to(torch.device("cuda", device) if isinstance(device, int) else device)

    def tolist(self) -> Any:
        """A list, for which the host waits."""
        counts.sync("tolist")
        return self.elem.detach().tolist()


def _rebuilt(elem: Tensor, index: int, requires_grad: bool, is_parameter: bool) -> Tensor:
    made = GpuTensor(elem, index)
    return torch.nn.Parameter(made, requires_grad) if is_parameter else made.requires_grad_(requires_grad)


class PretendMode(TorchDispatchMode):
    """Sends every operation through :func:`run`, so that ``device="cuda"`` makes a :class:`GpuTensor`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def collect(values: Sequence[Any], found: list[Tensor]) -> None:
    """All tensors among arguments; ATen nests lists no deeper than this follows."""
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            collect(value, found)


def unwrapped(value: Any) -> Any:
    """The CPU tensors behind a value."""
    if isinstance(value, GpuTensor):
        return value.elem
    if isinstance(value, list | tuple):
        return type(value)([unwrapped(each) for each in value])
    return value


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Check one operation against the rules, count what it costs the host, and compute it on the CPU."""
    tensors: list[Tensor] = []
    collect(args, tensors)
    if kwargs:
        collect(list(kwargs.values()), tensors)
    device = kwargs.get("device")
    if device is not None:
        device = torch.device(device)
    wanted = device is not None and device.type == "cuda"
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    on_gpu: list[GpuTensor] = [t for t in tensors if isinstance(t, GpuTensor)]
    if not on_gpu and not wanted:
        return tensors[0].clone() if rules.name_of(func) in ("_pin_memory", "pin_memory") else func(*args, **kwargs)
    name = rules.name_of(func)
    if name == "is_pinned":
        return False
    if name == "_has_compatible_shallow_copy_type":
        return len(on_gpu) == len(tensors)
    generator = kwargs.get("generator") or next((x for x in args if isinstance(x, torch.Generator)), None)
    rules.check(func, args, tensors, generator)
    _count(name, args, tensors, device)
    index: int | None = on_gpu[0].device.index if on_gpu else None
    if device is not None:
        index = None
        if wanted:
            index = current() if device.index is None else device.index
            if index >= device_count:
                raise RuntimeError(f"CUDA error: invalid device ordinal ({device})")
        kwargs = {**kwargs, "device": CPU if wanted else device}
    plain_args = tuple(unwrapped(x) for x in args)
    plain_kwargs = {key: unwrapped(x) for key, x in kwargs.items()}
    if name == "_to_copy" and device is not None and device != tensors[0].device and plain_args[0].device == CPU:
        result = func(*plain_args, **plain_kwargs)
        return result if index is None else GpuTensor(result, index)
    if name == "histc" and not plain_args[0].is_floating_point():  # CUDA takes integers here, a CPU does not
        result = func(plain_args[0].double(), *plain_args[1:], **plain_kwargs)
        return GpuTensor(result.to(plain_args[0].dtype), on_gpu[0].device.index)
    wrappers = {id(t.elem): t for t in on_gpu}
    untouched = {id(t) for t in tensors if not isinstance(t, GpuTensor)}
    return _wrapped(func, args, kwargs, func(*plain_args, **plain_kwargs), index, wrappers, untouched)


def _wrapped(
    func: Any,
    args: Any,
    kwargs: Any,
    result: Any,
    index: int | None,
    wrappers: dict[int, GpuTensor],
    untouched: set[int],
) -> Any:
    """Results as tensors of the pretend GPU; an argument changed in place is itself again."""
    if isinstance(result, list | tuple):
        parts = [_wrapped(func, args, kwargs, each, index, wrappers, untouched) for each in result]
        return parts if isinstance(result, list) else tuple(parts)
    if not isinstance(result, Tensor) or id(result) in untouched:
        return result
    wrapper = wrappers.get(id(result))
    if wrapper is None:
        return result if index is None else GpuTensor(result, index)
    if wrapper.shape != result.shape or wrapper.stride() != result.stride():
        _repeat_change(func, wrapper, result, args, kwargs)
    return wrapper


def _repeat_change(func: Any, wrapper: GpuTensor, elem: Tensor, args: Any, kwargs: Any) -> None:
    """Repeat an in-place change of sizes (``squeeze_``) on the wrapper, whose memory nobody reads."""
    with no_dispatch():
        included = torch._C._meta_in_tls_dispatch_include()
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            if torch.Tag.inplace_view in func.tags:
                func(*args, **kwargs)
            else:
                wrapper.as_strided_(elem.size(), elem.stride(), elem.storage_offset())
        finally:
            torch._C._set_meta_in_tls_dispatch_include(included)
    if wrapper.shape != elem.shape:
        raise NotImplementedError(f"{func} changed the shape of its argument in place")


def _count(name: str, args: tuple[Any, ...], tensors: list[Tensor], device: torch.device | None) -> None:
    if name in rules.SYNC or (name == "repeat_interleave" and len(tensors) == 1):
        counts.sync(name)
    elif name in rules.INDEX:
        indices = [t for t in args[1] if t is not None]
        if any(t.dtype in (torch.bool, torch.uint8) for t in indices):
            counts.sync(f"boolean {name}")
        if any(t.device.type == "cpu" for t in indices) and args[0].device.type == "cuda":
            counts.crossing("index from the CPU")
    elif name == "_to_copy" and device is not None and device.type != tensors[0].device.type:
        (counts.sync if device.type == "cpu" else counts.crossing)(f"to {device.type}")
    elif name == "copy_" and tensors[0].device.type != tensors[-1].device.type:
        (counts.sync if tensors[0].device.type == "cpu" else counts.crossing)("copy_")
