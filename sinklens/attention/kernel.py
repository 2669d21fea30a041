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
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.attention.block import AttentionShape, Block
from sinklens.attention.causal import attend_causal, fits
from sinklens.attention.masks import LazyMask
from sinklens.attention.statistics import Statistic
from sinklens.attention.survey import surveys
from sinklens.attention.visibility import Hidden, cut, mask_rows, visible_keys
from sinklens.attention.workers import run_units
from sinklens.errors import InputError, UnsupportedArchitectureError

MAX_CELLS = 128
"""Display maps and the two-step argmax use at most this many cells along an axis."""

ROWS_ON_CPU, BYTES_ON_CPU = 128, 3 << 19
"""Query rows in a block on a CPU, and bytes of its scores: they and the weights stay near the core."""

WORTH_THREADS = 1 << 22
"""Scores in a call from which on a CPU's threads take heads side by side."""


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
    compiled: bool = True,
) -> Float[Tensor, "batch head q_pos d_value"]:
    """Attention output of one layer, feeding every block to ``statistics`` and through ``edits``.

    Args:
        call: Query, key, value and everything that shapes the scores.
        statistics: Objects made for ``call.shape``.
        edits: Changes to scores and pattern, applied in order.
        rows_per_block: Query rows in a block; default 128 on a CPU (fits the cache) and 512 elsewhere.
        block_bytes: Target size of one block's scores, which sets how many heads share a block; default 1.5 MiB
            on a CPU, 256 MiB elsewhere.
        compiled: Whether compiled code may take a call that it :func:`~sinklens.attention.causal.fits`; it rounds
            differently.

    Returns:
        Output in the dtype of the values. Rows that see no key are 0.

    Raises:
        InputError: Heads, sequences or positions of the call do not fit together.
        UnsupportedArchitectureError: A tensor mask that differs between heads.
    """
    shape = call.shape
    _check(call)
    if compiled and rows_per_block is None and block_bytes is None and fits(call, statistics, edits):
        return attend_causal(call, statistics)
    on_cpu = shape.device.type == "cpu"
    rows_per_block = rows_per_block or (ROWS_ON_CPU if on_cpu else 512)
    rows_per_block = -(-rows_per_block // shape.cell) * shape.cell  # maps pool whole cells of rows
    block_bytes = block_bytes or (BYTES_ON_CPU if on_cpu else 1 << 28)
    sizes = (shape.batch, shape.q_pos, shape.heads, call.value.shape[-1])  # laid out as the architecture reads it
    out = torch.empty(sizes, dtype=call.value.dtype, device=shape.device).transpose(1, 2)
    by_block: Sequence[Statistic] = statistics
    # a closed form knows the scores as dot products, so an edit of scores rules it out; the pattern may be edited
    if is_plain(call) and not any(hasattr(edit, "edit_scores") for edit in edits):
        real = torch.ones(shape.batch, shape.q_pos, device=shape.device) if call.real is None else call.real.float()
        by_block = [s for s in statistics if not s.take_plain(call.query, call.key, call.scaling, real)]
    for look, others in surveys(edits, shape):  # writes to ``out`` too, which the pass below overwrites
        survey = _Job(call, [look], others, out, rows_per_block, block_bytes)
        run_units(survey.run, survey.units(), parallel=False)
    job = _Job(call, by_block, edits, out, rows_per_block, block_bytes)
    work = shape.batch * shape.heads * shape.q_pos * shape.k_pos
    # edits may keep state of their own, so they are never run side by side
    run_units(job.run, job.units(), parallel=on_cpu and not edits and work >= WORTH_THREADS)
    return out


class _Job:
    """One attention call, cut into units (some heads of some sequences) that touch disjoint data."""

    def __init__(
        self,
        call: AttentionCall,
        statistics: Sequence[Statistic],
        edits: Sequence[Edit],
        out: Tensor,
        rows_per_block: int,
        block_bytes: int,
    ) -> None:
        self.call, self.statistics, self.edits, self.out = call, statistics, edits, out
        self.rows_per_block, self.block_bytes = rows_per_block, block_bytes
        self.shape = call.shape
        self.group = self.shape.heads // call.key.shape[1]  # query heads that share one KV head
        together = [s for s in statistics if getattr(s, "takes_batches", False)]
        self.together = sorted(together, key=lambda s: s.uses_up_scores)
        self.apart = [s for s in statistics if not getattr(s, "takes_batches", False)]
        # an edit that compares the heads of a layer sees them all in one block, whatever its size
        self.all_heads = any(getattr(edit, "all_heads", False) for edit in edits)
        real = call.real
        # the engine gives none where all rows are real; to look would make a GPU's host wait
        self.unpadded = real is None or (real.device.type == "cpu" and bool(real.all()))
        ones = torch.ones(self.shape.batch, self.shape.q_pos, device=self.shape.device)
        self.real = ones if real is None else real.to(ones)
        self.positions = torch.arange(self.shape.k_padded, device=self.shape.device)
        self.workspaces = threading.local()  # units run side by side, each thread on buffers of its own

    def units(self) -> list[tuple[slice, slice]]:
        """Sequences and heads of every unit; under a mask, built once for all heads, they stay together."""
        batch, heads = self.shape.batch, self.shape.heads
        by_head = 4 * min(self.rows_per_block, self.shape.q_pos) * self.shape.k_padded
        n_heads, n_sequences = heads, 1
        if self.call.mask is None and self.shape.device.type == "cpu":
            n_heads = self._n_heads(heads, by_head)
        if n_heads == heads and not self.edits:  # an edit sees one sequence at a time
            n_sequences = max(1, min(batch, self.block_bytes // (heads * by_head)))
        return [(s, h) for s in cut(slice(0, batch), n_sequences) for h in cut(slice(0, heads), n_heads)]

    def _n_heads(self, most: int, by_head: int) -> int:
        """How many heads fit into a block: whole groups that share a KV head, or an even part of one."""
        fit = most if self.all_heads else max(1, min(most, self.block_bytes // by_head))
        if fit >= self.group:
            return fit - fit % self.group
        return max(part for part in range(1, fit + 1) if self.group % part == 0)

    def run(self, unit: tuple[slice, slice]) -> None:
        """All row blocks of one unit."""
        sequences, heads = unit
        call, shape = self.call, self.shape
        kv_heads = slice(heads.start // self.group, (heads.stop - 1) // self.group + 1)
        seen_by = (call.mask, call.causal, call.query.dtype, shape)
        # q_pos d_head products, where scores have q_pos k_pos
        query = (call.query[sequences, heads].float() * call.scaling).contiguous()
        key = _padded(call.key[sequences, kv_heads].float(), shape).contiguous()
        value = _padded(call.value[sequences, kv_heads].float(), shape).contiguous()
        for start in range(0, shape.q_pos, self.rows_per_block):
            rows = slice(start, min(start + self.rows_per_block, shape.q_pos))
            for own, visible, keys in visible_keys(*seen_by, sequences, rows):
                tile = rows.start + shape.offset  # the first row's own position: all rows see all keys before it
                hidden = Hidden(visible, rows.stop - rows.start, keys.stop - keys.start, tile, shape.device)
                seen = self.positions[rows] + shape.offset + 1 if visible is None else visible.sum(-1)
                n_visible = seen.float()
                weight = self.real[own, rows] * (n_visible > 0)
                local = slice(own.start - sequences.start, own.stop - sequences.start)
                size = 4 * (rows.stop - rows.start) * (keys.stop - keys.start) * (own.stop - own.start)
                for some in cut(heads, self._n_heads(heads.stop - heads.start, size)):
                    mine = slice(some.start - heads.start, some.stop - heads.start)
                    # a block may be a part of a group of query heads that share one KV head
                    shared = slice(some.start // self.group, (some.stop - 1) // self.group + 1)
                    kv = slice(shared.start - kv_heads.start, shared.stop - kv_heads.start)
                    n_sequences, n_heads, n_rows, n_keys = (part.stop - part.start for part in (own, some, rows, keys))
                    scores = self._buffer("scores", n_sequences, n_heads, n_rows, n_keys)
                    pattern = self._buffer("pattern", *scores.shape)
                    # query heads that share a KV head are one product
                    transposed = key[local, kv, keys].flatten(0, 1).transpose(1, 2)
                    torch.bmm(_folded(query[local, mine, rows], kv), transposed, out=_folded(scores, kv))
                    block = Block(shape, own, some, rows, keys, scores, pattern, visible, weight, n_visible)
                    if n_sequences == 1:
                        block = next(block.by_sequence())
                    block.unpadded = self.unpadded and visible is None
                    _shape_scores(call, block, hidden)
                    _fill_pattern(call, block, self.edits, hidden)
                    self._show(block)
                    result = torch.bmm(_folded(pattern, kv), value[local, kv, keys].flatten(0, 1))
                    result = result.view(*pattern.shape[:3], -1)
                    self.out[own, some, rows] = result.to(self.out.dtype)

    def _show(self, block: Block) -> None:
        """Each statistic takes the block whole or, if it knows only single sequences, in parts."""
        for part in block.by_sequence() if self.apart else ():
            for statistic in self.apart:
                statistic.see(part)
        for statistic in self.together:
            block.scores_spare = statistic is self.together[-1]
            statistic.see(block)

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


def _folded(x: Float[Tensor, "batch head q_pos width"], kv_heads: slice) -> Float[Tensor, "kv_head rows width"]:
    """Query heads that share a KV head below each other, as rows of one matrix."""
    return x.reshape(x.shape[0] * (kv_heads.stop - kv_heads.start), -1, x.shape[-1])


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


def _shape_scores(call: AttentionCall, block: Block, hidden: Hidden) -> None:
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
        additive = mask_rows(call.mask, block.shape, block.sequence, block.rows).float()
        additive = torch.nn.functional.pad(additive, (0, block.shape.k_padded - additive.shape[-1]))
        scores += additive[..., None, :, block.keys]
    hidden.clear(scores)
    hidden.lower(scores)


def _fill_pattern(call: AttentionCall, block: Block, edits: Sequence[Edit], hidden: Hidden) -> None:
    """Edits on scores, softmax, learned sink, edits on the pattern; hidden scores end as 0."""
    score_edits: list[Any] = [e for e in edits if hasattr(e, "edit_scores")]
    pattern_edits: list[Any] = [e for e in edits if hasattr(e, "edit_pattern")]
    for edit in score_edits:
        edit.edit_scores(block)
        block.changed()
    block.top_score = block.scores.amax(-1)
    if call.sink_logits is None:
        torch.softmax(block.scores, -1, out=block.pattern)
    else:
        # the sink takes part in the softmax and has no column in the pattern, so the softmax is written out
        sink = call.sink_logits[block.heads].float()[:, None]
        top = torch.maximum(block.top_score, sink)
        torch.exp(block.scores - top[..., None], out=block.pattern)
        sink_weight = torch.exp(sink - top)
        kept = block.pattern.sum(-1)
        block.pattern /= (kept + sink_weight)[..., None]
        block.kept_mass = kept / (kept + sink_weight)  # 1 - the sink's share would lose digits
    if score_edits:  # edits may hide keys, and then different ones for every head
        unseen = block.scores == -math.inf
        facts = [(unseen == block.visible_keys).any(), unseen.all(-1).any()]
        # the softmax of nothing is no distribution; a GPU is waited for once
        block.scores_incomplete, block.pattern_edited = torch.stack(facts).tolist()
        block.pattern.masked_fill_(unseen, 0)
        block.scores.masked_fill_(unseen, 0)
    else:
        hidden.clear(block.scores)  # statistics multiply pattern and scores, and 0 times -inf is NaN
    if block.visible is not None:  # a row without any visible key came out of the softmax as NaN
        hidden.clear(block.pattern)
    for edit in pattern_edits:
        edit.edit_pattern(block)
        block.pattern_edited = True
        block.changed()
