"""MLPs some rows at a time: a long pass then holds no three states of their width."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from sinklens.capture.heap import give_back
from sinklens.models.parts import parts_of

ROWS: Final = 1024
"""Tokens of each sequence at a time."""

_DENSE: Final = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@contextmanager
def mlp_by_rows(model: TransformerBridge) -> Iterator[None]:
    """Let every gated dense MLP take its rows in parts, which changes nothing but the last bits and the memory.

    Others (experts, other layouts) stay as they are, and so does an MLP in which a hook watches: it sees whole states.
    """
    changed: list[Module] = []
    try:
        for block in model.blocks:
            mlp = getattr(block._modules.get("mlp"), "original_component", None)
            if isinstance(mlp, Module) and {*mlp._modules} == _DENSE and not any(map(_watched, parts_of(mlp))):
                mlp.__dict__["forward"] = partial(_in_parts, mlp.forward)
                changed.append(mlp)
        yield
    finally:
        for mlp in changed:
            del mlp.__dict__["forward"]


def _watched(part: Module) -> bool:
    hooks = part.fwd_hooks if isinstance(part, HookPoint) else ()
    return bool(hooks or part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__)


def _in_parts(
    forward: Callable[[Tensor], Tensor], states: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    give_back()  # what attention needed
    out = torch.empty_like(states)
    for some, into in zip(states.split(ROWS, 1), out.split(ROWS, 1), strict=True):
        into.copy_(forward(some))
    return out
