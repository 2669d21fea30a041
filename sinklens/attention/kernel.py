"""Exact attention by blocks of query rows: output, statistics and edits in one pass, never a T x T tensor.

For a block of rows the scores of all keys up to the diagonal are formed (scaling, soft cap, bias, mask),
edits change them, one fused softmax in fp32 turns them into the pattern, a learned sink logit takes its
share, edits change the pattern, statistics read both, and the pattern times the values is the output. On a
CPU this single pass costs about as much as a fused SDPA forward, because a block of 128 rows stays in cache;
a second pass over QK^T is not needed.

Cost: O(q_pos k_pos d_head) time as any exact attention, O(rows k_pos) extra memory for the block in hand.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.attention.block import AttentionShape, Block
from sinklens.attention.masks import LazyMask
from sinklens.attention.statistics import Statistic
from sinklens.attention.survey import surveys
from sinklens.attention.workers import run_units
from sinklens.errors import InputError, UnsupportedArchitectureError

MAX_CELLS = 128
"""Display maps and the two-step argmax use at most this many cells along an axis."""

WORTH_THREADS = 1 << 22
"""Scores in a call from which on a CPU's threads take heads side by side."""


def hidden_below(*dtypes: torch.dtype) -> float:
    """Score at or below which an additive mask has hidden the key.

    Masks add the minimum of the model's dtype, sometimes before the division by sqrt(d_head). In half
    precision that minimum is only -65504, and it may have gone on in fp32, so every dtype involved is asked
    for.
    """
    return -3e4 if torch.float16 in dtypes else -1e37


class Edit(Protocol):
    """Changes attention inside the engine, a block at a time and in place.

    ``edit_call`` and then ``edit_values`` run once per layer before everything else, ``edit_scores`` before the softmax
    (hidden keys hold ``-inf``; writing ``-inf`` hides a key), ``edit_pattern`` after it, ``edit_output`` once per layer
    on the finished ``pattern @ value`` of all heads. An edit that defines none of them changes nothing.
    """

    def edit_call(self, call: "AttentionCall") -> "AttentionCall":
        """See queries, keys and values before anything is computed, and change them: fast path only.

        Return the call, or another one with new tensors; what it holds may be the KV cache and is not changed in place.
        """

    def edit_values(self, shape: AttentionShape, value: Float[Tensor, "batch kv_head k_pos d_value"]) -> None:
        """Change the value states in place; a KV cache keeps the unchanged ones and is edited anew each time.

        Through the bridge's hooks only the new keys come here, and the cache keeps what the edit made of them.
        """

    def survey(self, shape: AttentionShape) -> Statistic | None:
        """Something to show every block of the layer before the first is edited (a second pass), or ``None``."""

    def edit_scores(self, block: Block) -> None:
        """Change ``block.scores`` in place."""

    def edit_pattern(self, block: Block) -> None:
        """Change ``block.pattern`` in place and return; rows need not keep their sum."""

    def edit_output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        """Change ``output`` in place: what each head hands on, before any output gate and before ``W_O``.

        Through the bridge's hooks ``shape.k_pos`` leaves out cached keys.
        """


@dataclass(frozen=True)
class AttentionCall:
    """Queries, keys, values and all that shapes the scores of one attention layer, in transformers' layout.

    Attributes:
        layer: Block index in the bridge.
        query: ``[batch head q_pos d_head]``, after rotary embedding.
        key: ``[batch kv_head k_pos d_head]``.
        value: ``[batch kv_head k_pos d_value]``.
        scaling: Factor on ``q . k``.
        mask: ``None`` for the plain case, a :class:`LazyMask`, or a tensor mask broadcastable to
            ``[batch 1 q_pos k_pos]`` (bool with True at visible keys, or additive float), causality included.
        causal: What ``None`` means: causal (True) or every key visible (False).
        soft_cap: ``s -> cap tanh(s / cap)`` when set (Gemma-2).
        sink_logits: One learned logit per head that joins the softmax and is dropped (gpt-oss).
        bias: Additive score bias broadcastable to ``[batch head q_pos k_pos]`` (ALiBi, relative positions).
        real: Which query rows are real tokens, ``[batch q_pos]``; ``None`` means all.
    """

    layer: int
    query: Float[Tensor, "batch head q_pos d_head"]
    key: Float[Tensor, "batch kv_head k_pos d_head"]
    value: Float[Tensor, "batch kv_head k_pos d_value"]
    scaling: float
    mask: LazyMask | Tensor | None = None
    causal: bool = True
    soft_cap: float | None = None
    sink_logits: Float[Tensor, " head"] | None = None
    bias: Tensor | None = None
    real: Bool[Tensor, "batch q_pos"] | None = None

    @property
    def shape(self) -> AttentionShape:
        """Sizes of the call."""
        return make_shape(self.layer, self.query.shape[:3], self.key.shape[2], self.query.device)


def make_shape(layer: int, query_sizes: Sequence[int], k_pos: int, device: torch.device) -> AttentionShape:
    """Sizes of a call; the cell is the smallest power of two that gives at most :data:`MAX_CELLS` cells."""
    batch, heads, q_pos = query_sizes
    cell = 1 << max(0, math.ceil(math.log2(k_pos / MAX_CELLS)))
    padded = -(-k_pos // cell) * cell
    return AttentionShape(layer, batch, heads, q_pos, k_pos, padded, cell, device)


def attend(
    call: AttentionCall,
    statistics: Sequence[Statistic] = (),
    edits: Sequence[Edit] = (),
    *,
    rows_per_block: int | None = None,
    block_bytes: int | None = None,
) -> Float[Tensor, "batch head q_pos d_value"]:
    """Attention output of one layer, feeding every block to ``statistics`` and through ``edits``.

    Args:
        call: Query, key, value and everything that shapes the scores.
        statistics: Objects made for ``call.shape``.
        edits: Changes to scores and pattern, applied in order.
        rows_per_block: Query rows in a block; default 128 on a CPU (fits the cache) and 512 elsewhere.
        block_bytes: Target size of one block's scores, which sets how many heads share a block; default 1 MiB
            on a CPU, 256 MiB elsewhere.

    Returns:
        Output in the dtype of the values. Rows that see no key are 0.

    Raises:
        InputError: Heads, sequences or positions of the call do not fit together.
        UnsupportedArchitectureError: A tensor mask that differs between heads.
    """
    shape = call.shape
    _check(call)
    on_cpu = shape.device.type == "cpu"
    rows_per_block = rows_per_block or (128 if on_cpu else 512)
    rows_per_block = -(-rows_per_block // shape.cell) * shape.cell  # maps pool whole cells of rows
    block_bytes = block_bytes or (1 << 20 if on_cpu else 1 << 28)
    sizes = (shape.batch, shape.q_pos, shape.heads, call.value.shape[-1])  # laid out as the architecture reads it
    out = torch.empty(sizes, dtype=call.value.dtype, device=shape.device).transpose(1, 2)
    ones = torch.ones(shape.batch, shape.q_pos, device=shape.device)
    real = ones if call.real is None else call.real.to(ones)
    by_block: Sequence[Statistic] = statistics
    # a closed form knows the scores as dot products, so an edit of scores rules it out; the pattern may be edited
    if is_plain(call) and not any(hasattr(edit, "edit_scores") for edit in edits):
        by_block = [s for s in statistics if not s.take_plain(call.query, call.key, call.scaling, real)]
    for look, others in surveys(edits, shape):  # writes to ``out`` too, which the pass below overwrites
        survey = _Job(call, [look], others, out, real, rows_per_block, block_bytes)
        run_units(survey.run, survey.units(), parallel=False)
    job = _Job(call, by_block, edits, out, real, rows_per_block, block_bytes)
    work = shape.batch * shape.heads * shape.q_pos * shape.k_pos
    # edits may keep state of their own, so they are never run side by side
    run_units(job.run, job.units(), parallel=on_cpu and not edits and work >= WORTH_THREADS)
    return out


class _Job:
    """One attention call, cut into units (some heads of one sequence) that touch disjoint data."""

    def __init__(
        self,
        call: AttentionCall,
        statistics: Sequence[Statistic],
        edits: Sequence[Edit],
        out: Tensor,
        real: Float[Tensor, "batch q_pos"],
        rows_per_block: int,
        block_bytes: int,
    ) -> None:
        self.call, self.statistics, self.edits, self.out, self.real = call, statistics, edits, out, real
        self.rows_per_block, self.block_bytes = rows_per_block, block_bytes
        self.shape = call.shape
        # an edit that compares the heads of a layer sees them all in one block, whatever its size
        self.together = any(getattr(edit, "all_heads", False) for edit in edits)
        self.positions = torch.arange(self.shape.k_padded, device=self.shape.device)
        self.workspaces = threading.local()  # units run side by side, each thread on buffers of its own

    def units(self) -> list[tuple[int, slice]]:
        """Sequence and heads of every unit; under a mask, built once for all heads, they stay together."""
        heads, step = self.shape.heads, self.shape.heads
        if not self.together and self.call.mask is None and self.shape.device.type == "cpu":
            step = max(1, min(heads, self.block_bytes // (4 * self.rows_per_block * self.shape.k_padded)))
        ranges = [slice(head, min(head + step, heads)) for head in range(0, heads, step)]
        return [(sequence, heads) for sequence in range(self.shape.batch) for heads in ranges]

    def run(self, unit: tuple[int, slice]) -> None:
        """All row blocks of one unit."""
        sequence, heads = unit
        call, shape = self.call, self.shape
        group = shape.heads // call.key.shape[1]
        kv_heads = slice(heads.start // group, (heads.stop - 1) // group + 1)
        query = (
            call.query[sequence, heads].float() * call.scaling
        )  # q_pos d_head products, where scores have q_pos k_pos
        key = _padded(call.key[sequence, kv_heads].float(), shape)
        value = _padded(call.value[sequence, kv_heads].float(), shape)
        for start in range(0, shape.q_pos, self.rows_per_block):
            rows = slice(start, min(start + self.rows_per_block, shape.q_pos))
            visible, keys = _visible(call, sequence, rows, self.positions)
            n_rows, n_keys = rows.stop - rows.start, keys.stop - keys.start
            if visible is None:
                n_visible = (self.positions[rows] + shape.offset + 1).float()
            else:
                n_visible = visible.sum(-1).float()
            weight = self.real[sequence, rows] * (n_visible > 0)
            n_heads = shape.heads if self.together else max(1, self.block_bytes // (4 * n_rows * n_keys))
            for first in range(heads.start, heads.stop, n_heads):
                own = slice(first, min(first + n_heads, heads.stop))
                scores = self._buffer("scores", own.stop - first, n_rows, n_keys)
                pattern = self._buffer("pattern", *scores.shape)
                block = Block(shape, sequence, own, rows, keys, scores, pattern, visible, weight, n_visible)
                block.unpadded = call.real is None and visible is None
                # a block may begin in the middle of a group of query heads that share one KV head
                shared = [head // group - kv_heads.start for head in range(own.start, own.stop)]
                local = slice(own.start - heads.start, own.stop - heads.start)
                _matmul(query[local, rows], _take(key, shared)[:, keys].transpose(-1, -2), scores)
                _shape_scores(call, block)
                _fill_pattern(call, block, self.edits)
                for statistic in self.statistics:
                    statistic.see(block)
                result = torch.bmm(pattern, _take(value, shared)[:, keys])
                self.out[sequence, own, rows] = result.to(self.out.dtype)

    def _buffer(self, name: str, *size: int) -> Tensor:
        """A reused fp32 buffer of this thread: fresh megabytes for every block would cost page faults."""
        count = math.prod(size)
        held: Tensor | None = getattr(self.workspaces, name, None)
        if held is None or held.numel() < count:
            held = torch.empty(count, dtype=torch.float32, device=self.shape.device)
            setattr(self.workspaces, name, held)
        return held[:count].view(size)


def is_plain(call: AttentionCall) -> bool:
    """Whether scores are nothing but scaled dot products under a full causal mask."""
    shaped = call.soft_cap is not None or call.bias is not None
    return call.mask is None and call.causal and call.shape.q_pos > 1 and not shaped


def _padded(x: Tensor, shape: AttentionShape) -> Tensor:
    extra = shape.k_padded - shape.k_pos
    return torch.nn.functional.pad(x, (0, 0, 0, extra)) if extra else x


def _take(x: Tensor, indices: list[int]) -> Tensor:
    """Key or value heads, one for each query head: a view for one head or neighbours, else a copy."""
    first, last = indices[0], indices[-1]
    if first == last:
        return x[first : first + 1].expand(len(indices), -1, -1)
    return x[first : last + 1] if last - first + 1 == len(indices) else x[indices]


def _matmul(left: Tensor, right: Tensor, out: Tensor) -> None:
    if left.shape[0] == 1:
        torch.mm(left[0], right[0], out=out[0])
    else:
        torch.bmm(left, right, out=out)


def _visible(
    call: AttentionCall, sequence: int, rows: slice, positions: Tensor
) -> tuple[Bool[Tensor, "q_pos k_pos"] | None, slice]:
    """The block's mask (``None`` = plain causal) and the range of keys that any of its rows can see."""
    shape = call.shape
    if call.mask is None and call.causal and shape.q_pos > 1:
        stop = rows.stop + shape.offset
        return None, slice(0, -(-stop // shape.cell) * shape.cell)
    if call.mask is None:
        visible = (positions < shape.k_pos).expand(rows.stop - rows.start, -1)
    elif isinstance(call.mask, LazyMask):
        visible = call.mask.rows(rows.start, rows.stop)[sequence]
    else:
        mask = _mask_rows(call.mask, shape, sequence, rows)
        visible = mask if mask.dtype == torch.bool else mask > hidden_below(mask.dtype, call.query.dtype)
    visible = torch.nn.functional.pad(visible, (0, shape.k_padded - visible.shape[-1]))
    # keys that no row of the block sees (before a window, after the diagonal) are not even multiplied
    columns = visible.any(0).nonzero()
    if len(columns) == 0:  # a block of padding alone still has to write its rows
        return visible[:, : shape.cell], slice(0, shape.cell)
    first, last = int(columns[0]), int(columns[-1])
    keys = slice(first // shape.cell * shape.cell, (last // shape.cell + 1) * shape.cell)
    return visible[:, keys], keys


def _mask_rows(mask: Tensor, shape: AttentionShape, sequence: int, rows: slice) -> Tensor:
    """Rows of a tensor mask, ``[q_pos k_pos]``; what lies beyond ``k_pos`` (an unfilled cache) is cut off."""
    return mask.expand(shape.batch, 1, shape.q_pos, -1)[sequence, 0, rows, : shape.k_pos]


def _check(call: AttentionCall) -> None:
    """Refuse what would be measured wrongly instead of failing."""
    (batch, heads, q_pos, _), (kv_batch, kv_heads, k_pos, _) = call.query.shape, call.key.shape
    if kv_batch != batch or call.value.shape[:3] != call.key.shape[:3] or heads % kv_heads:
        raise InputError(
            f"Expected queries [batch head q_pos d_head] with keys and values [batch kv_head k_pos d] of "
            f"the same batch and a divisor of the heads, got {tuple(call.query.shape)}, "
            f"{tuple(call.key.shape)} and {tuple(call.value.shape)}."
        )
    if call.causal and q_pos > k_pos:
        raise InputError(f"Causal attention needs a key for each of the {q_pos} queries, got {k_pos} keys.")
    if isinstance(call.mask, Tensor) and (call.mask.ndim != 4 or call.mask.shape[1] != 1):
        raise UnsupportedArchitectureError(
            f"Expected a mask [batch 1 q_pos k_pos], the same for all heads, got {tuple(call.mask.shape)}; "
            "pass what differs between heads as a bias."
        )
    if call.real is not None and call.real.shape != (batch, q_pos):
        raise InputError(f"Expected real positions [{batch} {q_pos}], got {tuple(call.real.shape)}.")


def _shape_scores(call: AttentionCall, block: Block) -> None:
    """Soft cap, bias and the mask (``-inf`` at hidden keys)."""
    scores = block.scores
    if call.soft_cap is not None:
        scores.div_(call.soft_cap).tanh_().mul_(call.soft_cap)
    if call.bias is not None:
        full = (*call.query.shape[:3], call.key.shape[2])
        bias = call.bias.expand(full)[block.sequence, block.heads, block.rows]
        bias = torch.nn.functional.pad(bias, (0, block.shape.k_padded - block.shape.k_pos))
        scores += bias[..., block.keys]
    if isinstance(call.mask, Tensor) and call.mask.dtype != torch.bool:
        # not only hidden or visible: some architectures put a finite bias into their mask
        additive = _mask_rows(call.mask, block.shape, block.sequence, block.rows).float()
        additive = torch.nn.functional.pad(additive, (0, block.shape.k_padded - additive.shape[-1]))
        scores += additive[:, block.keys]
    _hide(block, -math.inf)


def _hide(block: Block, fill: float) -> None:
    """Write ``fill`` at the hidden keys; for a plain causal block only its diagonal tile has any."""
    if block.visible is not None:
        block.scores.masked_fill_(~block.visible, fill)
        return
    own = block.rows.start + block.shape.offset  # the first row's own position: all keys before it are seen by all rows
    tile = block.scores[..., own:]
    tile.masked_fill_(_above_diagonal(tile.shape[-2], tile.shape[-1], tile.device), fill)


@lru_cache(maxsize=64)
def _above_diagonal(rows: int, keys: int, device: torch.device) -> Bool[Tensor, "q_pos k_pos"]:
    """Keys after each row's own, within the tile that starts at the first row's own position."""
    return torch.ones(rows, keys, dtype=torch.bool, device=device).triu(1)


def _fill_pattern(call: AttentionCall, block: Block, edits: Sequence[Edit]) -> None:
    """Edits on scores, softmax, learned sink, edits on the pattern; hidden scores end as 0."""
    score_edits: list[Any] = [e for e in edits if hasattr(e, "edit_scores")]
    pattern_edits: list[Any] = [e for e in edits if hasattr(e, "edit_pattern")]
    for edit in score_edits:
        edit.edit_scores(block)
        block.changed()
    if call.sink_logits is None:
        torch.softmax(block.scores, -1, out=block.pattern)
    else:
        # the sink takes part in the softmax and has no column in the pattern, so the softmax is written out
        sink = call.sink_logits[block.heads].float()[:, None]
        top = torch.maximum(block.scores.amax(-1), sink)
        torch.exp(block.scores - top[..., None], out=block.pattern)
        sink_weight = torch.exp(sink - top)
        kept = block.pattern.sum(-1)
        block.pattern /= (kept + sink_weight)[..., None]
        block.kept_mass = kept / (kept + sink_weight)  # 1 - the sink's share would lose digits
    if score_edits:  # edits may hide keys, and then different ones for every head
        hidden = block.scores == -math.inf
        block.scores_incomplete = not torch.equal(hidden, (~block.visible_keys).expand_as(hidden))
        block.pattern_edited = bool(hidden.all(-1).any())  # the softmax of nothing is no distribution
        block.pattern.masked_fill_(hidden, 0)
        block.scores.masked_fill_(hidden, 0)
    else:
        _hide(block, 0)  # statistics multiply pattern and scores, and 0 times -inf is NaN
    if block.visible is not None:  # a row without any visible key came out of the softmax as NaN
        block.pattern.masked_fill_((block.n_visible == 0)[:, None], 0)
    for edit in pattern_edits:
        edit.edit_pattern(block)
        block.pattern_edited = True
        block.changed()
