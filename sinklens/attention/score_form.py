"""What shapes the scores of a call, in closed form: what a GPU kernel and fused attention can be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.attention.block import AttentionShape
from sinklens.attention.kernel import AttentionCall
from sinklens.attention.masks import LazyMask


@dataclass(frozen=True)
class ScoreChange:
    """An edit of scores in closed form; without anything it changes nothing.

    Attributes:
        shift: Added to the scores of keys, ``-inf`` hides them, ``[batch head k_pos]``.
        spare_self: Whether a query goes on seeing its own hidden key.
        limits: Most recent keys that a head sees, its own included; 0 for all, ``[head]``.
        spared: Keys that no limit hides, ``[batch k_pos]``.
        hides: Whether any visible key may be hidden: margins are then not applicable.
    """

    shift: Float[Tensor, "batch head k_pos"] | None = None
    spare_self: bool = False
    limits: Int[Tensor, " head"] | None = None
    spared: Bool[Tensor, "batch k_pos"] | None = None
    hides: bool = False


@dataclass(frozen=True)
class ScoreForm:
    """Which keys every query sees and how its scores are shaped, without a tensor of size ``q_pos k_pos``.

    Query i of the call stands at key ``i + offset``. Soft cap first, then the shift of keys, then what is hidden.

    Attributes:
        shape: Sizes of the call.
        causal: Whether keys after the own position are hidden.
        window: Keys that a query sees at most, 0 for all.
        keys: Which keys are real, ``[batch k_pos]``; ``None`` for all.
        change: An edit of the scores.
    """

    shape: AttentionShape
    causal: bool
    window: int
    keys: Bool[Tensor, "batch k_pos"] | None
    change: ScoreChange

    @cached_property
    def _ends(self) -> tuple[Int[Tensor, " q_pos"], Int[Tensor, " q_pos"]]:
        """First key that each query may see, and the one after the last."""
        own = torch.arange(self.shape.q_pos, device=self.shape.device) + self.shape.offset
        stop = own + 1 if self.causal else torch.full_like(own, self.shape.k_pos)
        first = (own + 1 - self.window).clamp(min=0) if self.window else torch.zeros_like(own)
        return first, stop

    @cached_property
    def n_visible(self) -> Float[Tensor, "batch q_pos"]:
        """Keys that each query sees, edits left out."""
        first, stop = self._ends
        if self.keys is None:
            return (stop - first).float().expand(self.shape.batch, -1)
        real = torch.nn.functional.pad(self.keys.long().cumsum(-1), (1, 0))
        return (real[:, stop] - real[:, first]).float()

    def spread(self, value: Float[Tensor, "*head q_pos"]) -> Float[Tensor, "*head k_pos"]:
        """Sum over the queries that may see each key, padding of keys left out, in fp64."""
        shape = self.shape
        sums = torch.nn.functional.pad(value.double().cumsum(-1), (1, 0))
        if not self.causal:
            return sums[..., -1:].expand(*value.shape[:-1], shape.k_pos)
        first = torch.arange(shape.k_pos, device=shape.device) - shape.offset
        stop = (first + self.window).clamp(0, shape.q_pos) if self.window else torch.full_like(first, shape.q_pos)
        return sums[..., stop] - sums[..., first.clamp(0, shape.q_pos)]


def form_of(call: AttentionCall, edits: Sequence[Any]) -> ScoreForm | str:
    """The closed form of a call under edits, or why there is none.

    Args:
        call: The call.
        edits: All edits of the layer; those of values, outputs and whole calls do not matter.
    """
    shape, change = call.shape, ScoreChange()
    changing = [edit for edit in edits if hasattr(edit, "edit_scores")]
    if any(hasattr(edit, "edit_pattern") or hasattr(edit, "survey") for edit in edits):
        return "an edit changes the pattern"
    if len(changing) > 1:
        return "several edits change the scores"
    if changing:
        known = changing[0].score_change(shape) if hasattr(changing[0], "score_change") else None
        if known is None:
            return f"{type(changing[0]).__name__} changes scores in a way that has no closed form"
        change = known
    if call.bias is not None:
        if call.bias.shape[-2] != 1 or call.bias.ndim != 4 or change.shift is not None:
            return "a bias of queries and keys is added to the scores"
        whole = call.bias.float().expand(shape.batch, shape.heads, 1, shape.k_pos)
        change = ScoreChange(whole[:, :, 0].contiguous(), change.spare_self, change.limits, change.spared, change.hides)
    if call.mask is None:
        return ScoreForm(shape, call.causal and shape.q_pos > 1, 0, None, change)
    form = call.mask.form if isinstance(call.mask, LazyMask) else None
    if form is None:
        return "the mask has no closed form"
    keys = None if form.keys is None else form.keys.expand(shape.batch, -1)
    return ScoreForm(shape, True, form.window, keys, change)
