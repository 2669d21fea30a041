"""Attention of each query on keys that are named query by query, such as "the token before" or "earlier copies"."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.attention.block import AttentionShape, Block
from sinklens.attention.statistics import Statistic
from sinklens.errors import InputError


class TargetMass(Statistic):
    """How much attention each query gives to target keys of its own, and what uniform attention would give them.

    ``target_i = sum_{j in J_i} A_ij`` and ``null_i = |{j in J_i : i sees j}| / n_i`` with ``n_i`` keys visible to query
    i. Rows are not renormalised: mass on a learned sink logit belongs to no target. A target that the mask hides has
    no mass and no null. A query without any target has no value (NaN), which is not the same as giving it nothing.

    Args:
        shape: Sizes of the call.
        targets: For each name the keys of every query, ``[batch q_pos m]``, counted from the first key; -1 fills up.
            A key may stand once in a row. ``m`` may differ between names and be 0.

    Raises:
        InputError: Targets of another shape or type, beyond the keys, below -1, or twice in a row.

    Cost: O(m) per row and head; memory two numbers per query, head and name, and the targets themselves.
    """

    _sums = ("mass", "null")

    def __init__(self, shape: AttentionShape, targets: Mapping[str, Int[Tensor, "batch q_pos m"]]) -> None:
        super().__init__(shape)
        checked = [_checked(name, keys, shape) for name, keys in targets.items()]
        self.names = tuple(targets)
        self.mass = shape.zeros(len(checked), shape.batch, shape.heads, shape.q_pos)
        self.null = shape.zeros(len(checked), shape.batch, shape.q_pos)
        self._widths = [keys.shape[-1] for keys in checked]
        none = torch.zeros(shape.batch, shape.q_pos, 0, dtype=torch.int64, device=shape.device)
        self._targets = torch.cat([*checked, none], -1)
        self._given = [(keys >= 0).any(-1) for keys in checked]

    def update(self, block: Block) -> None:
        """Set the masses of the block's rows."""
        targets = self._targets[block.sequence, block.rows]
        inside = (targets >= block.keys.start) & (targets < block.keys.stop)
        local = (targets - block.keys.start).clamp(0, block.keys.stop - block.keys.start - 1)
        weights = block.pattern.gather(-1, local.expand(len(block.pattern), -1, -1)) * inside
        for index, part in enumerate(weights.split(self._widths, -1)):
            self.mass[index, block.sequence, block.heads, block.rows] = part.sum(-1)
        if block.first_heads:
            shares = (inside & _seen(block, local)).float() / block.n_visible.clamp(min=1)[:, None]
            for index, part in enumerate(shares.split(self._widths, -1)):
                self.null[index, block.sequence, block.rows] = part.sum(-1)

    def compute(self) -> dict[str, Tensor]:
        """``target_<name>`` per head and query, ``target_<name>_null`` per query."""
        found = {}
        for index, name in enumerate(self.names):
            none = ~self._given[index]
            found[f"target_{name}"] = self._rows_or_nan(self.mass[index]).masked_fill(none[:, None], math.nan)
            null = self._rows_or_nan(self.null[index][:, None])[:, 0]
            found[f"target_{name}_null"] = null.masked_fill(none, math.nan)
        return found


def _seen(block: Block, local: Int[Tensor, "q_pos m"]) -> Bool[Tensor, "q_pos m"]:
    """Whether each row sees its targets, which are counted within the block."""
    if block.visible is not None:
        return block.visible.gather(-1, local)
    own = torch.arange(block.rows.start, block.rows.stop, device=local.device) + block.shape.offset
    seen: Tensor = local + block.keys.start <= own[:, None]
    return seen


def _checked(name: str, targets: Tensor, shape: AttentionShape) -> Int[Tensor, "batch q_pos m"]:
    if targets.ndim != 3 or targets.shape[:2] != (shape.batch, shape.q_pos) or targets.is_floating_point():
        raise InputError(
            f"Expected targets {name!r} as integers [{shape.batch} {shape.q_pos} m], one row per query, got "
            f"{tuple(targets.shape)} {targets.dtype}."
        )
    targets = targets.to(device=shape.device, dtype=torch.int64)
    if targets.numel() == 0:
        return targets
    low, high = int(targets.min()), int(targets.max())
    if low < -1 or high >= shape.k_pos:
        wrong = low if low < -1 else high
        raise InputError(f"Targets {name!r} must be keys from 0 to {shape.k_pos - 1}, or -1 for none, got {wrong}.")
    ordered = targets.sort(-1).values
    if bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()):
        raise InputError(f"Targets {name!r} name a key twice for one query, which would count its mass twice.")
    return targets
