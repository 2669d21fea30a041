"""Edits that touch other heads in every sequence of a batch, so that many ablations fit one forward pass."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.attention import AttentionShape, Block
from sinklens.errors import InputError


def by_sequence(edits: Sequence[Any], chosen: Bool[Tensor, "batch layer head"]) -> list[Any]:
    """``edits`` made for all heads, each restricted to the heads that ``chosen`` names for a sequence.

    Args:
        edits: Engine edits that treat every head by itself.
        chosen: On the CPU; for which heads of which layer the edits hold, by sequence of the batch.

    Raises:
        InputError: An edit changes something that heads share (values), which cannot be restricted to heads.
    """
    for edit in edits:
        if hasattr(edit, "edit_values"):
            raise InputError(f"{type(edit).__name__} changes values, which heads share; it has no effect by head.")
    return [_BySequence(edit, chosen) for edit in edits]


class _BySequence:
    def __init__(self, edit: Any, chosen: Bool[Tensor, "batch layer head"]) -> None:
        self.edit, self.chosen = edit, chosen
        # the engine asks for the slots by name
        if hasattr(edit, "edit_scores"):
            self.edit_scores = self._scores
        if hasattr(edit, "edit_pattern"):
            self.edit_pattern = self._pattern
        if hasattr(edit, "edit_output"):
            self.edit_output = self._output
        if hasattr(edit, "survey"):
            self.survey = edit.survey

    def _scores(self, block: Block) -> None:
        self._restricted(block, block.scores, self.edit.edit_scores)

    def _pattern(self, block: Block) -> None:
        self._restricted(block, block.pattern, self.edit.edit_pattern)

    def _restricted(self, block: Block, weights: Tensor, edit: Any) -> None:
        spared = ~self.chosen[block.sequence, block.shape.layer, block.heads]
        if bool(spared.all()):
            return
        heads = spared.nonzero().flatten().to(weights.device)
        before = weights[heads]
        edit(block)
        weights[heads] = before

    def _output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        chosen = self.chosen[:, shape.layer]
        if not bool(chosen.any()):
            return
        edited = output.clone()
        self.edit.edit_output(shape, edited)
        sequences, heads = (index.to(output.device) for index in chosen.nonzero(as_tuple=True))
        output[sequences, heads] = edited[sequences, heads]
