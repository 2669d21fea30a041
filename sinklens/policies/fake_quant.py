"""Fake-quantised keys and values: what few bits do to attention, with and without exact sinks."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.attention.kernel import AttentionCall
from sinklens.errors import InputError
from sinklens.interventions.positions import Positions
from sinklens.policies.base import Policy
from sinklens.policies.rounding import hadamard, quantised
from sinklens.policies.view import View


@dataclass(frozen=True)
class FakeQuantKV(Policy):
    """Rounds keys and values to a few bits, as a quantised cache would hold them, and keeps some tokens exact.

    Asymmetric, per token and group of channels: ``x' = low + round((x - low) / step) step`` with
    ``step = (high - low) / (2^bits - 1)``. ``smooth`` takes the mean key of the text away before rounding, which
    changes no attention weight (a constant in every score of a row) but narrows the range (SageAttention). ``rotate``
    turns keys by a Hadamard matrix before rounding and back after (RotateKV; there before the rotary embedding and over
    groups of heads, here after it and in each head). ``protect`` keeps the first tokens exact: the sinks.

    A number near the border of two levels falls on either side by its last bits, so one pass and cached steps, which
    round differently, need not agree: on SmolLM2 at 8 bits one key entry of layer 4 does, and logits move by up to 0.4.

    Args:
        bits: For keys and values; 16 rounds nothing.
        group_size: Channels that share a range; 0: all of a head.
        smooth: Take the mean key away first.
        rotate: Turn keys first; ``d_head`` must be a power of two.
        protect: First tokens that stay exact.
        what: ``"both"``, ``"keys"`` or ``"values"``.
    """

    bits: int = 4
    group_size: int = 0
    smooth: bool = False
    rotate: bool = False
    protect: int = 0
    what: Literal["both", "keys", "values"] = "both"

    name: ClassVar[str] = "fake_quant"
    scope: ClassVar = "causal"
    group: ClassVar = "model"
    evicts: ClassVar[bool] = True
    source: ClassVar[str] = "KIVI, arXiv 2402.02750; RotateKV, arXiv 2501.16383; SageAttention2, arXiv 2411.10958"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.bits <= 16:
            raise InputError(f"bits must be from 1 to 16, got {self.bits}.")
        if self.what not in ("both", "keys", "values"):
            raise InputError(f'what must be "both", "keys" or "values", got {self.what!r}.')

    def change_call(self, call: AttentionCall, positions: Positions) -> AttentionCall:
        """Round what a cache would hold."""
        if self.bits == 16:
            return call
        where = positions.key_positions(call.shape)[:, None, :, None]
        exact = where < self.protect
        key, value = call.key.float(), call.value.float()
        if self.what != "values":
            text = positions.is_text(call.shape)[:, None, :, None]
            mean = (key * text).sum(2, keepdim=True) / text.sum(2, keepdim=True) if self.smooth else 0
            turn = hadamard(key.shape[-1]).to(key) if self.rotate else None
            moved = key - mean if turn is None else (key - mean) @ turn
            rounded = quantised(moved, self.bits, self.group_size)
            key = torch.where(exact, key, (rounded if turn is None else rounded @ turn.T) + mean)
        if self.what != "keys":
            value = torch.where(exact, value, quantised(value, self.bits, self.group_size))
        return replace(call, key=key.to(call.key.dtype), value=value.to(call.value.dtype))

    def bytes_per_key(self, d_head: int, element_size: int) -> float:
        """Bits of what is rounded, with a low end and a step of 16 bits a group; protected tokens are not counted."""
        if self.bits == 16:
            return super().bytes_per_key(d_head, element_size)
        rounded = d_head * self.bits / 8 + 4 * d_head / (self.group_size or d_head)
        exact = d_head * element_size
        return 2 * rounded if self.what == "both" else rounded + exact

    def keep(self, view: View) -> Bool[Tensor, "q_pos k_pos"]:
        """Everything."""
        return torch.ones_like(view.distance, dtype=torch.bool)
