"""ScaleHeads: what heads hand on, made larger or smaller (VHR)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.attention import AttentionShape
from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.fields import parse_number
from sinklens.interventions.heads import Heads, as_index, heads_in_layer, parse_heads
from sinklens.interventions.positions import Positions


@dataclass(frozen=True)
class ScaleHeads(Intervention):
    """Multiplies the output z of heads: ``z <- factor z``, the same as adding ``(factor - 1) z W_O`` to the attention.

    ``factor=1`` changes no bit, 0 is ``AblateHeads(heads, "zero")``. Vision-aware head reinforcement takes 2 in the
    half of each layer's heads that depend most on the image;
    :func:`~sinklens.studies.span_heads.dependence.reinforced_heads` chooses them for a span of text, with earlier
    layers not yet reinforced. z is taken before any output gate.

    Args:
        heads: Heads such as ``["L5H1", (5, 2)]``, or ``"all"``.
        factor: From 0.
        from_row: First position changed, counted from the text's first token; for VHR the prompt's last.

    Source: He et al. (2025), Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence (VHR),
    arXiv 2412.13949.
    """

    heads: Heads
    factor: float = 2.0
    from_row: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", parse_heads(self.heads))
        object.__setattr__(self, "factor", parse_number(self.factor, "factor", 0))
        if as_index(self.from_row) < 0:
            raise InputError(f"from_row must be an integer from 0, got {self.from_row!r}.")
        object.__setattr__(self, "from_row", as_index(self.from_row))

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of head outputs."""
        return [_Scale(self, positions)]


class _Scale:
    def __init__(self, method: ScaleHeads, positions: Positions) -> None:
        self.method, self.positions = method, positions

    def edit_output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        heads = heads_in_layer(self.method.heads, shape)
        if heads:
            late = (self.positions.row_positions(shape) >= self.method.from_row)[:, None, :, None]
            output[:, heads] = torch.where(late, self.method.factor * output[:, heads], output[:, heads])
