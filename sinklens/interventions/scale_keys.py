"""ScaleKeys: attention to some keys made stronger or weaker (ZeroTuning)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sinklens.attention import AttentionShape, Block
from sinklens.attention.score_form import ScoreChange
from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.heads import Heads, heads_in_block, heads_in_layer, parse_heads
from sinklens.interventions.positions import Positions, parse_keys


@dataclass(frozen=True)
class ScaleKeys(Intervention):
    """Multiplies the attention that some key positions get by gamma; the other keys of a row make up for it.

    ``s_k <- s_k + log(gamma)`` before the softmax, after soft cap, bias and mask. For one key k with weight ``a_k`` the
    row becomes ``a'_k = gamma a_k / D`` and ``a'_j = a_j / D`` elsewhere, ``D = 1 + (gamma - 1) a_k``; for several keys
    ``a_k`` in D is their total. Exact for every query, unlike a factor on the key's state. ``gamma=1`` changes nothing,
    gamma towards 0 hides the keys, and row 0 keeps its 1 on key 0. A learned sink logit is divided by D as another key
    would be.

    ZeroTuning is ``ScaleKeys(keys=0, gamma=...)``.

    Args:
        keys: Key positions (one, or several), in every sequence.
        gamma: Factor greater than 0.
        heads: ``"all"``, or heads such as ``["L5H1", (5, 2)]``.

    Source: Han et al. (2026), ZeroTuning, arXiv 2505.11739; in logit form Eq. 24 of arXiv 2604.10098.
    """

    keys: tuple[int, ...]
    gamma: float
    heads: Heads = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", parse_keys(self.keys))
        object.__setattr__(self, "gamma", _parse_gamma(self.gamma))
        object.__setattr__(self, "heads", parse_heads(self.heads))

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of scores."""
        return [_AddToScores(self, positions)]


class _AddToScores:
    def __init__(self, method: ScaleKeys, positions: Positions) -> None:
        self.method, self.positions = method, positions

    def edit_scores(self, block: Block) -> None:
        heads = heads_in_block(self.method.heads, block)
        if heads == []:
            return
        keys = self.positions.keys(block)
        chosen = torch.isin(keys, torch.tensor(self.method.keys, device=keys.device))
        if bool(chosen.any()):
            shift = math.log(self.method.gamma) * chosen.to(block.scores.dtype)
            block.scores[heads] += shift

    def score_change(self, shape: AttentionShape) -> ScoreChange:
        """The same for kernels that see no block."""
        heads = heads_in_layer(self.method.heads, shape)
        if heads == []:
            return ScoreChange()
        positions = self.positions.key_positions(shape)
        named = torch.isin(positions, torch.tensor(self.method.keys, device=shape.device))
        shift = shape.zeros(shape.batch, shape.heads, shape.k_pos)
        shift[:, heads] = math.log(self.method.gamma) * named[:, None].float()
        return ScoreChange(shift)


def _parse_gamma(gamma: Any) -> float:
    try:
        value = math.nan if isinstance(gamma, str | bool) else float(gamma)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"gamma must be a finite number above 0, got {gamma!r}; to hide keys use MaskKeys.")
    return value
