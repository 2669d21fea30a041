"""Keys by blocks of positions: what rules about blocks share."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.policies.view import View


def key_blocks(
    view: View, block: int, by: Literal["mean", "max"]
) -> tuple[Float[Tensor, "head q_pos k_block"], Bool[Tensor, "head q_pos k_block"], Bool[Tensor, "q_pos k_block"]]:
    """Score of every block of keys for every row, which blocks a row sees, and which is its own.

    Args:
        view: The rows.
        block: Tokens in a block, counted from position 0.
        by: How the scores of the visible keys of a block become one.
    """
    parts = in_blocks(view.scores.masked_fill(view.keys < 0, -math.inf), view, block)
    there = parts != -math.inf
    if by == "max":
        score = parts.amax(-1)
    else:
        score = parts.masked_fill(~there, 0).sum(-1) / there.sum(-1).clamp(min=1)
    seen = there.any(-1)
    numbers = torch.arange(parts.shape[-2], device=view.keys.device)
    own = view.rows.clamp(min=0).div(block, rounding_mode="floor")[:, None] == numbers
    return score.masked_fill(~seen, -math.inf), seen, own


def spread_blocks(chosen: Bool[Tensor, "*rows k_block"], view: View, block: int) -> Bool[Tensor, "*rows k_pos"]:
    """Chosen blocks as keys."""
    number = view.keys.clamp(min=0).div(block, rounding_mode="floor")
    return chosen[..., number.clamp(max=chosen.shape[-1] - 1)] & (view.keys >= 0)


def in_blocks(values: Tensor, view: View, block: int) -> Float[Tensor, "... k_block in_block"]:
    """What belongs to keys, sorted into blocks from position 0 on, ``-inf`` where a block has no key.

    Padding before the text is left out.
    """
    before = int((-view.keys[0]).clamp(min=0))
    values = values[..., before:]
    first = int(view.keys[before]) if before < len(view.keys) else 0
    extra = -(values.shape[-1] + first) % block
    parts: Tensor = torch.nn.functional.pad(values, (first, extra), value=-math.inf).unflatten(-1, (-1, block))
    return parts
