"""Keys by blocks of positions: what rules about blocks share."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.policies import compiled
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
    score = _block_scores(view, block, by)
    numbers = torch.arange(score.shape[-1], device=view.keys.device)
    own = view.rows.clamp(min=0).div(block, rounding_mode="floor")[:, None] == numbers
    return score, score != -math.inf, own


def _block_scores(view: View, block: int, by: Literal["mean", "max"]) -> Float[Tensor, "head q_pos k_block"]:
    if compiled.takes(view.scores):
        before, first = _start(view)
        count = -(-(first + len(view.keys) - before) // block)
        found = view.scores.new_empty(*view.scores.shape[:2], count)
        compiled.block_scores(view.scores.numpy(), before, first, block, by == "mean", found.numpy())
        return found
    parts = in_blocks(view.scores.masked_fill(view.keys < 0, -math.inf), view, block)
    if by == "max":
        return parts.amax(-1)
    there = parts != -math.inf
    score = parts.masked_fill(~there, 0).sum(-1) / there.sum(-1).clamp(min=1)
    return score.masked_fill(~there.any(-1), -math.inf)


def _start(view: View) -> tuple[int, int]:
    """Columns before the text, and the position of the first one after them."""
    before = int((-view.keys[0]).clamp(0, len(view.keys)))
    return before, int(view.keys[before]) if before < len(view.keys) else 0


def spread_blocks(chosen: Bool[Tensor, "*rows k_block"], view: View, block: int) -> Bool[Tensor, "*rows k_pos"]:
    """Chosen blocks as keys."""
    before, first = _start(view)
    keys = chosen[..., None].expand(*chosen.shape, block).flatten(-2)[..., first : first + len(view.keys) - before]
    found: Tensor = torch.nn.functional.pad(keys, (before, len(view.keys) - before - keys.shape[-1]))
    return found


def in_blocks(values: Tensor, view: View, block: int) -> Float[Tensor, "... k_block in_block"]:
    """What belongs to keys, sorted into blocks from position 0 on, ``-inf`` where a block has no key.

    Padding before the text is left out.
    """
    before, first = _start(view)
    values = values[..., before:]
    extra = -(values.shape[-1] + first) % block
    parts: Tensor = torch.nn.functional.pad(values, (first, extra), value=-math.inf).unflatten(-1, (-1, block))
    return parts
