"""Measure under torch's usual settings, whatever the caller has set globally."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def usual_torch() -> Iterator[None]:
    """Default dtype float32, default device CPU and no autocast inside; the caller's settings come back afterwards.

    The engine accumulates in float32 whatever the model's dtype. Under ``set_default_dtype(bfloat16)`` or ``autocast``
    the same code would sum in bfloat16 and give other numbers, and under float64 its tensors would not fit the model's.
    Also a decorator.
    """
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_default_dtype, dtype)
        yield
