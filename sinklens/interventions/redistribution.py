"""Attention mass moved from some keys of a row to others, the rest of the row untouched."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LEAST = 1e-30
"""Receivers with less weight than this in total are taken for none."""


def move_mass(
    pattern: Float[Tensor, "*head q_pos k_pos"],
    sources: Bool[Tensor, "*#head #q_pos k_pos"],
    receivers: Bool[Tensor, "*#head #q_pos k_pos"] | None,
    kept: float,
    rows: Bool[Tensor, "*#head q_pos"] | None = None,
) -> Float[Tensor, "*head q_pos k_pos"]:
    """Rows in which sources keep a share of their weight and receivers share the rest in proportion to their own.

    ``A'_j = kept A_j`` for sources, ``A'_j = A_j (1 + (1 - kept) M / R)`` for receivers, ``A'_j = A_j`` elsewhere, with
    ``M`` and ``R`` the row's total weight on sources and on receivers. Row sums stay, and so do the ratios among
    sources and among receivers. A row without any weight on receivers stays as it is. ``kept=1`` changes no bit.

    Args:
        pattern: Attention weights.
        sources: Keys that lose weight.
        receivers: Keys that gain it, none of them a source; ``None`` means all other keys.
        kept: Share of their weight that sources keep, 0 to 1.
        rows: Rows to change; default: all.

    >>> keys = torch.arange(3)
    >>> move_mass(torch.tensor([[0.5, 0.125, 0.375], [0.0, 1.0, 0.0]]), keys == 1, None, kept=0.0)
    tensor([[0.5714, 0.0000, 0.4286],
            [0.0000, 1.0000, 0.0000]])
    """
    taken = pattern * sources
    rest = pattern - taken
    others = rest if receivers is None else pattern * receivers
    lost = taken.sum(-1, keepdim=True) * (1 - kept)
    gained = others.sum(-1, keepdim=True)
    possible = gained > LEAST
    if rows is not None:
        possible = possible & rows[..., None]
    gain = 1 + torch.where(possible, lost / gained.clamp(min=LEAST), 0)
    share = torch.where(possible, torch.full_like(gained, kept), 1.0)
    # every weight is in one of the terms and 0 in the others, so the sum rounds nothing
    moved = torch.addcmul(taken * share, others, gain)
    return moved if receivers is None else moved + (rest - others)
