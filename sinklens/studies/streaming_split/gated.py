"""A model whose KV heads each mix full and streaming attention, differentiable in how much of either."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionCall, AttentionEngine, AttentionShape
from sinklens.attention.fused import fused
from sinklens.attention.kernel import is_plain
from sinklens.attention.masks import LazyMask
from sinklens.errors import UnsupportedArchitectureError
from sinklens.wording import several

ROWS = 256
"""Query rows in hand at once."""

HeadOutputs = dict[int, Float[Tensor, "batch head pos d_value"]]


class KeepOutputs:
    """Observer that keeps the head outputs of every layer."""

    def __init__(self) -> None:
        self.z: HeadOutputs = {}

    def observe_output(self, shape: AttentionShape, output: Tensor) -> None:
        """Keep one layer's."""
        self.z[shape.layer] = output


class GatedEngine(AttentionEngine):
    """``z = alpha full + (1 - alpha) streaming`` in every KV head, with gradients towards alpha.

    The mix is of head outputs, before ``W_O``. All query heads of a group share its gate.

    Args:
        model: The bridge, on the fast path.
        gates: alpha of every layer with attention, by layer, each ``[kv_head]``.
        sinks: First tokens that streaming attention sees.
        recent: Most recent ones, the query included.
        teacher: Full attention's outputs by layer, from the unchanged model; ``None``: from the gated model's own
            queries, keys and values.
    """

    differentiable = True

    def __init__(
        self,
        model: TransformerBridge,
        gates: Mapping[int, Float[Tensor, " kv_head"]],
        sinks: int,
        recent: int,
        teacher: HeadOutputs | None = None,
    ) -> None:
        super().__init__(model)
        self.gates, self.sinks, self.recent, self.teacher = gates, sinks, recent, teacher

    def attend(self, call: AttentionCall) -> Tensor:
        """One layer's mixed head outputs."""
        self.finish(call.layer, call.value, [])
        alpha = self.gates[call.layer].to(call.query.device)
        if call.query.shape[1] % len(alpha):
            raise UnsupportedArchitectureError(
                f"Layer {call.layer} has {several(call.query.shape[1], 'query head')} and "
                f"{several(len(alpha), 'gate')} for its KV heads."
            )
        share = alpha.repeat_interleave(call.query.shape[1] // len(alpha))[:, None, None].to(call.value.dtype)
        full = full_attention(call) if self.teacher is None else self.teacher[call.layer]
        return share * full + (1 - share) * streaming_attention(call, self.sinks, self.recent)


def full_attention(call: AttentionCall) -> Float[Tensor, "batch head q_pos d_value"]:
    """The architecture's own attention, differentiable."""
    if is_plain(call) and call.sink_logits is None:
        return fused(call)
    return _by_rows(call, 0, None)


def streaming_attention(call: AttentionCall, sinks: int, recent: int) -> Float[Tensor, "batch head q_pos d_value"]:
    """Attention to the first ``sinks`` keys and the ``recent`` last ones (the query's own included), differentiable.

    The layer's own mask, biases, soft cap and learned sink stay as they are.

    Cost: O(pos (sinks + recent + rows)) time, and memory for as much of one block of rows, which is computed again when
    gradients are taken.
    """
    return _by_rows(call, sinks, recent)


def _by_rows(call: AttentionCall, sinks: int, recent: int | None) -> Tensor:
    shape = call.shape
    if shape.q_pos != shape.k_pos or not call.causal:
        raise UnsupportedArchitectureError(
            f"Gates need causal attention over a whole text, got {shape.q_pos} queries and {shape.k_pos} keys"
            f"{'' if call.causal else ' without causality'}."
        )
    parts = []
    for start in range(0, shape.q_pos, ROWS):
        stop = min(start + ROWS, shape.q_pos)
        first = 0 if recent is None else max(0, start - recent + 1)
        seen = torch.arange(stop, device=shape.device)
        seen = seen[(seen < sinks) | (seen >= first)]
        part = (call, slice(start, stop), seen, sinks, recent)
        if torch.is_grad_enabled():
            parts.append(checkpoint(_rows, *part, use_reentrant=False))
        else:
            parts.append(_rows(*part))
    return torch.cat(parts, 2)


def _rows(call: AttentionCall, rows: slice, seen: Tensor, sinks: int, recent: int | None) -> Tensor:
    """Output of some rows that see nothing but (some of) the keys ``seen``."""
    group = call.query.shape[1] // call.key.shape[1]
    query = call.query[:, :, rows].float().unflatten(1, (-1, group))
    scores = torch.einsum("bkgqd,bksd->bkgqs", query, call.key[:, :, seen].float()).flatten(1, 2) * call.scaling
    if call.soft_cap is not None:
        scores = call.soft_cap * torch.tanh(scores / call.soft_cap)
    if call.bias is not None:
        scores = scores + _picked(call.bias, rows, seen)
    scores, visible = _masked(call, scores, rows, seen)
    positions = torch.arange(rows.start, rows.stop, device=seen.device)[:, None]
    visible = visible & (seen <= positions)
    if recent is not None:
        visible = visible & ((positions - seen < recent) | (seen < sinks))
    scores = scores.masked_fill(~visible, -math.inf)
    if call.sink_logits is None:
        pattern = scores.softmax(-1)
    else:
        sink = call.sink_logits.float()[None, :, None, None].expand(*scores.shape[:-1], 1)
        pattern = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    value = call.value[:, :, seen].float()
    output = torch.einsum("bkgqs,bksd->bkgqd", pattern.unflatten(1, (-1, group)), value)
    return output.flatten(1, 2).to(call.value.dtype)


def _masked(
    call: AttentionCall, scores: Tensor, rows: slice, seen: Tensor
) -> tuple[Tensor, Bool[Tensor, "#batch #head q_pos k_pos"]]:
    """Scores with an additive mask added, and which keys the layer's own mask shows."""
    if isinstance(call.mask, LazyMask):
        return scores, call.mask.rows(rows.start, rows.stop)[:, None][..., seen]
    if isinstance(call.mask, Tensor):
        mask = _picked(call.mask, rows, seen)
        if mask.dtype == torch.bool:
            return scores, mask
        scores = scores + mask
    return scores, torch.ones(1, 1, 1, 1, dtype=torch.bool, device=seen.device)


def _picked(x: Tensor, rows: slice, seen: Tensor) -> Tensor:
    """Rows and keys of a mask or bias ``[.. q_pos k_pos]``; one row for all queries stays."""
    return (x if x.shape[-2] == 1 else x[..., rows, :])[..., seen]


@contextmanager
def frozen(model: TransformerBridge) -> Iterator[None]:
    """No parameter of the model asks for gradients inside ``with``; afterwards those do that did."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asked:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
