"""Queries and keys of one layer as linear maps of the residual stream, once every norm's scale is frozen."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.attention.kernel import AttentionCall
from sinklens.detectors.direct_logit import FrozenNorm, freeze_norm
from sinklens.errors import UnsupportedArchitectureError

TOLERANCE = 1e-3
"""Largest difference to the model's own queries and keys, relative to their largest entry, that is still rounding."""

Rotation = Callable[[Tensor, bool], Tensor]
"""Rotary embedding of ``[batch head pos d_head]``; with True its transpose."""


@dataclass(frozen=True)
class Projection:
    """One side (query or key) of a layer's attention: ``factor R N(x W + b)``, x the normed residual stream.

    Attributes:
        weight: ``[head d_model d_head]``.
        bias: ``[head d_head]``.
        head_norm: The norm of queries or keys at these states, or ``None``.
        rotate: Rotary embedding.
        factor: A constant factor that the model puts on them.
        state: What attention got, ``[batch head pos d_head]``, in fp64.
        norm: The norm before attention at these residual states, ``None`` where there is none.
    """

    weight: Float[Tensor, "head d_model d_head"]
    bias: Float[Tensor, "head d_head"]
    head_norm: FrozenNorm | None
    rotate: Rotation
    factor: float
    state: Float[Tensor, "batch head pos d_head"]
    norm: FrozenNorm | None

    def pull_back(
        self, head: int, direction: Float[Tensor, "batch pos d_head"]
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, " batch"]]:
        """A direction of one head's states, as one of the residual stream, and what biases add along it.

        The product of ``direction`` with the states is that of the result with the residual stream, plus the bias.
        """
        before, bias = self.before_norm(head, direction)
        read = before @ self.weight[head].T
        bias = bias + (before @ self.bias[head]).sum(1)
        if self.norm is None:
            return read, bias
        return self.norm.pull_back(read), bias + (read @ self.norm.bias).sum(1)

    def part(
        self, head: int, hidden: Float[Tensor, "batch pos d_model"], channels: Tensor
    ) -> Float[Tensor, "batch pos d_head"]:
        """What some channels of the residual stream make of a head's states."""
        kept = torch.zeros_like(hidden)
        kept[..., channels] = hidden[..., channels]
        projected = (kept if self.norm is None else self.norm(kept)) @ self.weight[head]
        if self.head_norm is not None:
            projected = _of_head(self.head_norm, head)(projected)
        return self.factor * self.rotate(projected[:, None], False)[:, 0]

    def before_norm(
        self, head: int, direction: Float[Tensor, "batch pos d_head"]
    ) -> tuple[Float[Tensor, "batch pos d_head"], Float[Tensor, " batch"]]:
        """The direction before rotation and head norm, and what the head norm's bias adds."""
        turned = self.factor * self.rotate(direction[:, None], True)[:, 0]
        if self.head_norm is None:
            return turned, turned.new_zeros(len(turned))
        norm = _of_head(self.head_norm, head)
        return norm.pull_back(turned), (turned @ norm.bias).sum(1)


def freeze_exactly(norm: Any, residual: Tensor, normed: Tensor) -> FrozenNorm | None:
    """:func:`freeze_norm` with its scales in fp64; ``None`` where nothing is normed."""
    if residual.shape == normed.shape and torch.equal(residual, normed):
        return None
    module = getattr(norm, "original_component", None) or norm
    found = freeze_norm(module, residual.float(), normed.float())
    weight, bias, x = found.weight.double(), found.bias.double(), residual.double()
    y = normed.double() - bias
    part = weight * (x - x.mean(-1, keepdim=True) if found.centred else x)
    scale = part.square().sum(-1, keepdim=True) / (part * y).sum(-1, keepdim=True)
    return FrozenNorm(weight, bias, found.centred, scale)


def project(
    attention: Any, side: str, normed: Tensor, norm: FrozenNorm | None, call: AttentionCall, rotary: Any
) -> Projection:
    """One side of a layer, checked against what attention got.

    Args:
        attention: The bridge's attention.
        side: ``"query"`` or ``"key"``.
        normed: What entered attention, ``[batch pos d_model]``.
        norm: The norm before it.
        call: Queries and keys as attention got them.
        rotary: ``(cos, sin)`` of the pass, or ``None``.

    Raises:
        UnsupportedArchitectureError: They cannot be reproduced from the weights.
    """
    letter = "Q" if side == "query" else "K"
    state = (call.query if side == "query" else call.key).double()
    try:
        weight = getattr(attention, f"W_{letter}").double()
        given = getattr(attention, f"b_{letter}", None)
    except (AttributeError, NotImplementedError, ValueError, RuntimeError):
        raise UnsupportedArchitectureError(f"W_{letter} of this architecture cannot be read.") from None
    if weight.shape != (state.shape[1], normed.shape[-1], state.shape[-1]):
        raise UnsupportedArchitectureError(
            f"W_{letter} has the shape {tuple(weight.shape)}, expected {state.shape[1]} heads of {state.shape[-1]}: "
            "queries and keys that are gated or compressed are not split into parts."
        )
    bias = (
        weight.new_zeros(weight.shape[0], weight.shape[2])
        if given is None
        else given.double().reshape(-1, weight.shape[2])
    )
    plain = torch.einsum("btm,hmd->bhtd", normed.double(), weight) + bias[:, None]
    head_norm = _head_norm(getattr(attention, "q_norm" if side == "query" else "k_norm", None), plain)
    ready = plain if head_norm is None else head_norm(plain) + head_norm.bias
    gap = float("inf")
    for rotate in _rotations(rotary, ready):
        turned = rotate(ready, False)
        factor = float((turned * state).sum() / turned.square().sum())
        gap = float((factor * turned - state).abs().max() / (1e-9 + state.abs().max()))
        if gap < TOLERANCE:
            return Projection(weight, bias, head_norm, rotate, factor, state, norm)
    raise UnsupportedArchitectureError(
        f"The {side} states of this architecture cannot be reproduced from W_{letter} and its rotary embedding (off by "
        f"{gap:.1e} of their largest entry), so its scores are not split into parts."
    )


def _head_norm(module: Any, plain: Float[Tensor, "batch head pos d_head"]) -> FrozenNorm | None:
    """The norm of queries or keys, as a map of ``[batch head pos d_head]``."""
    if module is None:
        return None
    module = getattr(module, "original_component", None) or module
    by_token = plain.transpose(1, 2).float()  # as the models have it: [batch pos head d_head]
    try:
        found = freeze_exactly(module, by_token, module(by_token))
    except (RuntimeError, UnsupportedArchitectureError):
        raise UnsupportedArchitectureError(
            f"The norm of queries or keys {type(module).__name__} does not work on each head by itself, so scores are "
            "not split into parts."
        ) from None
    return None if found is None else replace(found, scale=found.scale.transpose(1, 2))


def _of_head(norm: FrozenNorm, head: int) -> FrozenNorm:
    return replace(norm, scale=norm.scale[:, head])


def _rotations(rotary: Any, like: Tensor) -> list[Rotation]:
    """What a pair of cosine and sine may mean: halves or neighbours are paired, on all dims or the first."""
    if rotary is None or not isinstance(rotary, tuple | list):
        return [lambda x, back: x]
    cos, sin = (each.double()[:, None] if each.ndim == 3 else each.double()[None, None] for each in rotary)
    width = cos.shape[-1]
    found: list[Rotation] = []
    for paired in ("halves", "neighbours"):
        for repeated in (False, True):
            if repeated and 2 * width > like.shape[-1]:
                continue
            if repeated:  # one number for each pair
                spread = [
                    torch.cat((each, each), -1) if paired == "halves" else each.repeat_interleave(2, -1)
                    for each in (cos, sin)
                ]
            else:
                spread = [cos, sin]
            found.append(_rotation(spread[0], spread[1], paired))
    return found


def _rotation(cos: Tensor, sin: Tensor, paired: str) -> Rotation:
    width = cos.shape[-1]

    def rotate(x: Tensor, back: bool) -> Tensor:
        first, rest = x[..., :width], x[..., width:]
        if paired == "halves":
            low, high = first.chunk(2, -1)
            turned = torch.cat((-high, low), -1)
        else:
            turned = torch.stack((-first[..., 1::2], first[..., ::2]), -1).flatten(-2)
        return torch.cat((first * cos + (-1 if back else 1) * turned * sin, rest), -1)

    rotate.pairs = (paired, width)  # type: ignore[attr-defined]
    return rotate
