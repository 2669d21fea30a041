"""A model's modules and parameters, each once, without the thousands of names that torch's own walk makes."""

from collections.abc import Iterator

import torch
from torch.nn import Module


def parts_of(*roots: Module) -> Iterator[Module]:
    """Some modules and everything inside them.

    A bridge has thousands of parts (hook points); this takes a fifth of the time of ``modules()``.
    """
    parts, seen = [*roots], {id(root) for root in roots}
    while parts:
        part = parts.pop()
        yield part
        for child in part._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                parts.append(child)


def parameters_of(*roots: Module) -> list[torch.nn.Parameter]:
    """Their parameters; one that is shared (tied embeddings) stands once."""
    found: dict[int, torch.nn.Parameter] = {}
    for part in parts_of(*roots):
        found.update((id(each), each) for each in part._parameters.values() if each is not None)
    return list(found.values())
