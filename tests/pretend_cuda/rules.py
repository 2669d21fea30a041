"""ATen's rules of devices: which operations take tensors of two devices, and which make the host wait."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

SYNC = frozenset(
    [
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "equal",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "bincount",
        "is_nonzero",
        "nonzero_static",
        "linalg_eigh",
        "linalg_svd",
        "linalg_lstsq",
        "linalg_solve",
    ]
)
"""Operations that wait for the device before they return."""

INDEX = frozenset(
    ["index", "_unsafe_index", "index_put", "index_put_", "_unsafe_index_put", "_index_put_impl_", "_index_put_impl"]
)
"""Operations whose index tensors may lie on the CPU."""

CROSS = frozenset(["copy_", "_copy_from", "_foreach_copy_", "set_", "_has_compatible_shallow_copy_type", "_to_copy"])
"""Operations that take tensors of two devices."""

SCALARS = frozenset(
    [
        "where",
        "masked_fill",
        "masked_fill_",
        "fill",
        "fill_",
        "_foreach_add_",
        "_foreach_mul_",
        "_foreach_add",
        "_foreach_mul",
        "lift_fresh",
        "lift",
        "index_fill_",
        "index_fill",
        "scalar_tensor",
        "result_type",
    ]
)
"""Operations besides the pointwise ones that take a CPU tensor without dimensions."""

NO_INTEGERS = frozenset(
    [
        "mm",
        "bmm",
        "addmm",
        "addmm_",
        "mv",
        "addmv",
        "addmv_",
        "dot",
        "baddbmm",
        "baddbmm_",
        "addbmm",
        "vdot",
        "linalg_vecdot",
        "addr",
    ]
)
"""Products that CUDA has for floating-point numbers only."""

SAME = "Expected all tensors to be on the same device"


class DeviceFault(RuntimeError):
    """What a GPU would have refused; the message begins as torch's does where it has one."""


@lru_cache(maxsize=4096)
def name_of(func: Any) -> str:
    """Name of an ATen operation without namespace and overload."""
    name: str = func._schema.name.split("::")[1]
    return name


@lru_cache(maxsize=4096)
def _pointwise(func: Any) -> bool:
    return torch.Tag.pointwise in func.tags or name_of(func).startswith("_foreach")


@lru_cache(maxsize=4096)
def _writes_first(func: Any) -> bool:
    arguments = func._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None and arguments[0].alias_info.is_write


def check(func: Any, args: tuple[Any, ...], tensors: list[Tensor], generator: torch.Generator | None) -> None:
    """Refuse what a GPU would refuse.

    Args:
        func: The operation.
        args: Its positional arguments.
        tensors: All tensors among its arguments; at least one lies on a GPU, or the result will.
        generator: Its source of random numbers.

    Raises:
        DeviceFault: With the operation and its tensors.
    """
    name = name_of(func)
    if generator is not None and generator.device.type != "cuda":
        _fault(func, tensors, "Expected a 'cuda' device type for generator but found 'cpu'")
    if name in NO_INTEGERS and any(not (t.is_floating_point() or t.is_complex()) for t in tensors):
        _fault(func, tensors, "not implemented on CUDA for integers")
    devices = {t.device for t in tensors}
    if len(devices) < 2 or name in CROSS:
        return
    if name in INDEX:
        own = args[0].device
        indices = [t for t in args[1] if t is not None]
        if any(t.device != own and t.device.type != "cpu" for t in indices):
            _fault(
                func, tensors, f"indices should be either on cpu or on the same device as the indexed tensor ({own})"
            )
        value = args[2] if len(args) > 2 else None
        if isinstance(value, Tensor) and value.device != own and (value.device.type != "cpu" or value.dim() > 0):
            _fault(func, tensors, SAME)
        return
    if len({device for device in devices if device.type == "cuda"}) > 1:
        _fault(func, tensors, SAME)
    here = [t for t in tensors if t.device.type == "cpu"]
    if any(t.dim() > 0 for t in here) or (len(here) > 1 and name != "where"):
        _fault(func, tensors, SAME)
    if _writes_first(func) and isinstance(args[0], Tensor) and args[0].device.type == "cpu":
        _fault(func, tensors, f"{SAME} (a CPU tensor changed in place by a GPU tensor)")
    if not _pointwise(func) and name not in SCALARS:
        _fault(func, tensors, f"{SAME} (a CPU tensor without dimensions in an operation that takes none)")


def _fault(func: Any, tensors: list[Tensor], why: str) -> None:
    listed = ", ".join(f"{t.device} {str(t.dtype)[6:]} {tuple(t.shape)}" for t in tensors)
    raise DeviceFault(f"{why}: {func} on [{listed}]")
