"""Modules that run another ``forward`` for a while."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn import Module


@contextmanager
def forwards(instead: Iterable[tuple[Module, Callable[..., Any]]]) -> Iterator[None]:
    """Let each module run a function in place of its ``forward``; afterwards, and after an exception, its own again."""
    changed: list[Module] = []
    try:
        for module, function in instead:
            module.__dict__["forward"] = function
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]
