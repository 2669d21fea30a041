"""MaskKeys: some keys hidden from attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.attention import AttentionShape, Block
from sinklens.attention.score_form import ScoreChange
from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.heads import Heads, parse_heads
from sinklens.interventions.hidden_keys import HiddenKeys
from sinklens.interventions.positions import Positions, parse_keys


@dataclass(frozen=True)
class MaskKeys(Intervention):
    """Hides some key positions: their scores become ``-inf`` and the softmax runs over the other keys.

    The limit of :class:`~sinklens.interventions.ScaleKeys` for gamma towards 0 in every row that sees another key.

    With ``spare_self=True`` a token goes on seeing itself, so every row keeps a key: row 0 attends to key 0 as before.
    With ``spare_self=False`` a row whose visible keys are all hidden (row 0 when key 0 is) attends to nothing: its
    weights and the head's output are 0, its entropy and distance are not applicable. A learned sink logit then takes
    the whole row.

    A hidden sink often comes back at the next token: :func:`~sinklens.studies.effects.follow_sinks` finds the keys that
    hide it wherever it goes, and gives them as one of these.

    Args:
        keys: Key positions (one, or several), in every sequence.
        heads: ``"all"``, or heads such as ``["L5H1", (5, 2)]``.
        spare_self: Whether attention of a hidden token to itself stays.
    """

    keys: tuple[int, ...]
    heads: Heads = "all"
    spare_self: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.spare_self, bool):
            raise InputError(f"spare_self must be True or False, got {self.spare_self!r}.")
        object.__setattr__(self, "keys", parse_keys(self.keys))
        object.__setattr__(self, "heads", parse_heads(self.heads))

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of scores."""

        def hidden(block: Block) -> Bool[Tensor, "#q_pos k_pos"]:
            keys = positions.keys(block)
            chosen = torch.isin(keys, torch.tensor(self.keys, device=keys.device))[None]
            if self.spare_self:
                return chosen & (positions.rows(block)[:, None] != keys)
            return chosen

        def in_closed_form(shape: AttentionShape, heads: list[int]) -> ScoreChange:
            named = torch.isin(positions.key_positions(shape), torch.tensor(self.keys, device=shape.device))
            shift = shape.zeros(shape.batch, shape.heads, shape.k_pos)
            shift[:, heads] = shift[:, heads].masked_fill(named[:, None], -torch.inf)
            # the last key is seen by itself alone
            others = named[:, :-1] if self.spare_self else named
            return ScoreChange(shift, self.spare_self, hides=bool(others.any()))

        return [HiddenKeys(hidden, self.heads, in_closed_form)]
