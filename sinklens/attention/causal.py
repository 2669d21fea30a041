"""Plain causal attention on a CPU, measured in passing: products by BLAS, everything between them compiled.

What most layers of most models are: scores that are scaled dot products, a full causal mask, nothing edited. Statistics
that can be made of a few sums over rows and columns (:attr:`Statistic.from_sums`) take them once at the end; where
another one is asked for, :mod:`sinklens.attention.kernel` shows it every block instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.attention import compiled
from sinklens.attention.block import AttentionShape
from sinklens.attention.visibility import cut
from sinklens.attention.workers import MOST_WORKERS, run_units

ROWS, FEW_ROWS, PRODUCT_ROWS, BYTES = 128, 64, 192, 9 << 19
"""Query rows in a block at most, and at least where several KV heads share one, whose products then have so many rows
(of all query heads that share a KV head); bytes of its scores.

Products of fewer rows are slower. Larger blocks leave the cache before their values are taken; in smaller ones threads
wait for Python's lock.
"""

WORTH_THREADS = 1 << 16
"""Scores in a call from which on threads take heads and rows side by side."""

_spare: list[Any] = []
"""Buffers for scores that no thread is using: fresh megabytes for every block would cost page faults."""


def forget_buffers() -> None:
    """Let go of the memory that calls to come would take up again."""
    _spare.clear()


@dataclass
class CausalSums:
    """What a plain causal call says of its pattern p and scores s, for statistics to take.

    Attributes:
        shape: Sizes of the call.
        row_weight: 1 for real query rows, 0 for padding.
        received: ``sum_i w_i p_ij``.
        leaned: ``sum_i w_i n_i / (n_i - 1) s_ij`` with ``n_i`` keys visible to row i, rows that see one key left out.
        log_normalizer: Log of each row's softmax denominator.
        mean_score: ``sum_j p_ij s_ij``.
        distance: ``sum_j p_ij (i - j)``.
        score_sum: ``sum_j s_ij``.
    """

    shape: AttentionShape
    row_weight: Float[Tensor, "batch q_pos"]
    received: Float[Tensor, "batch head k_pos"]
    leaned: Float[Tensor, "batch head k_pos"]
    log_normalizer: Float[Tensor, "batch head q_pos"]
    mean_score: Float[Tensor, "batch head q_pos"]
    distance: Float[Tensor, "batch head q_pos"]
    score_sum: Float[Tensor, "batch head q_pos"]

    @cached_property
    def n_visible(self) -> Float[Tensor, " q_pos"]:
        """Number of keys that each row sees."""
        return torch.arange(self.shape.offset + 1, self.shape.k_pos + 1).float()

    def spread(self, row_value: Float[Tensor, "*head q_pos"]) -> Float[Tensor, "*head k_pos"]:
        """``sum_i row_value_i 1[i sees k]`` in fp64."""
        from_here_on = row_value.double().flip(-1).cumsum(-1).flip(-1)
        before = from_here_on[..., :1].expand(*from_here_on.shape[:-1], self.shape.offset)
        return torch.cat([before, from_here_on], -1)


class CausalBlock(NamedTuple):
    """Weights of some rows of some heads, while they are at hand.

    Attributes:
        weights: ``[sequence head, q_pos, k_pos]``, contiguous, 0 at hidden keys; overwritten after the look.
        largest: ``[sequence head, q_pos]``, the largest of each row.
        sequences: Those it is of.
        heads: Query heads it is of.
        rows: Query rows, counted within the call.
        own: Column of the first row's own position.
        row_weight: 1 for real query rows of the call, 0 for padding.
    """

    weights: Float[Tensor, "head q_pos k_pos"]
    largest: Float[Tensor, "head q_pos"]
    sequences: slice
    heads: slice
    rows: slice
    own: int
    row_weight: Float[Tensor, "batch q_pos"]


def fits(call: Any, statistics: Sequence[Any], edits: Sequence[Any]) -> bool:
    """Whether :func:`attend_causal` can do a call: compiled code at hand, plain causal, and no one asks for blocks.

    A call of which nothing is measured stays with the blocks, as the edited calls do that it is compared with: what
    changes nothing then changes no bit. Measured passes that are compared say so to the engine, which does not ask.
    """
    shaped = call.bias is not None or call.soft_cap is not None or call.sink_logits is not None or bool(edits)
    plain = call.mask is None and call.causal and call.shape.q_pos > 1 and call.query.device.type == "cpu"
    of_sums = bool(statistics) and all(each.from_sums for each in statistics)
    return of_sums and plain and not shaped and compiled.available()


def attend_causal(call: Any, statistics: Sequence[Any]) -> Tensor:
    """Output of a plain causal call ``[batch head q_pos d_value]``, and the statistics filled.

    Args:
        call: A call that :func:`fits`.
        statistics: Made for its shape, all of them :attr:`~sinklens.attention.Statistic.from_sums`.

    Cost: products as in fused attention, and about 0.7 ns a score and core for softmax and sums.
    """
    shape = call.shape
    parallel = shape.batch * shape.heads * shape.q_pos * shape.k_pos >= WORTH_THREADS
    job = _Call(call, statistics, min(torch.get_num_threads(), MOST_WORKERS) if parallel else 1)
    run_units(job.run, job.units, parallel=parallel)
    sums = job.sums()
    for statistic in statistics:
        statistic.take_sums(sums)
    return job.out


class _Unit(NamedTuple):
    """The row blocks of some KV heads of some sequences, or the ``part``-th share of these blocks."""

    sequences: slice
    kv_heads: slice
    part: int
    blocks: list[slice]


class _Call:
    """A call cut into units whose work is about the same."""

    def __init__(self, call: Any, statistics: Sequence[Any], workers: int) -> None:
        shape: AttentionShape = call.shape
        self.shape, self.statistics = shape, [each for each in statistics if each.watches]
        self.group = shape.heads // call.key.shape[1]
        self.query, self.scaling = call.query.float(), call.scaling
        self.key, self.value = call.key.float().contiguous(), call.value.float().contiguous()
        sizes = (shape.batch, shape.q_pos, shape.heads, call.value.shape[-1])  # laid out as the architecture reads it
        self.out = torch.empty(sizes, dtype=call.value.dtype).transpose(1, 2)
        self.row_weight = torch.ones(shape.batch, shape.q_pos) if call.real is None else call.real.float().contiguous()
        self.units = self._units(workers)
        parts = 1 + max(unit.part for unit in self.units)
        # each share adds to columns of its own: their sum has the same bits, whichever thread was first
        self.columns = torch.zeros(parts, 2, shape.batch, shape.heads, shape.k_pos)
        self.by_row = torch.empty(4, shape.batch, shape.heads, shape.q_pos)
        seen = torch.arange(shape.offset + 1, shape.k_pos + 1).float()
        self.weight = self.row_weight.numpy()
        self.lean = (self.row_weight * (seen > 1) * seen / (seen - 1).clamp(min=1)).numpy()
        self.back = np.arange(shape.k_pos - 1, -1, -1, dtype=np.float32)

    def sums(self) -> CausalSums:
        """What was found, when all units are done."""
        columns = self.columns.sum(0) if len(self.columns) > 1 else self.columns[0]
        return CausalSums(self.shape, self.row_weight, *columns, *self.by_row)

    def _units(self, workers: int) -> list[_Unit]:
        shape, kv_heads = self.shape, self.key.shape[1]
        by_row = 4 * self.group * shape.k_pos  # bytes of a row of the heads that share a KV head
        size = max(1, min(ROWS, shape.q_pos, BYTES // by_row))
        if size < shape.q_pos:
            few = min(ROWS, max(FEW_ROWS, PRODUCT_ROWS // self.group))
            together = max(1, min(kv_heads, BYTES // (by_row * few)))
            size = max(1, min(size, BYTES // (by_row * together)))
            groups = cut(slice(0, kv_heads), together)
            # rows that share a cell of a map stay with one thread
            bands = [cut(band, size) for band in cut(slice(0, shape.q_pos), -(-size // shape.cell) * shape.cell)]
            parts = -(-2 * workers // (shape.batch * len(groups))) if workers > 1 else 1
            shares = [[rows for band in bands[part::parts] for rows in band] for part in range(min(parts, len(bands)))]
            return [  # the last rows, which see the most keys, are begun first
                _Unit(slice(sequence, sequence + 1), heads, part, share)
                for part, share in reversed([*enumerate(shares)])
                for sequence in range(shape.batch)
                for heads in groups
            ]
        rows = [slice(0, shape.q_pos)]
        fitting = max(1, BYTES // (by_row * size * kv_heads))
        together = min(fitting, -(-shape.batch // (2 * workers))) if workers > 1 else fitting
        return [_Unit(some, slice(0, kv_heads), 0, rows) for some in cut(slice(0, shape.batch), together)]

    def run(self, unit: _Unit) -> None:
        """All row blocks of one unit."""
        sequences, kv_heads, part, blocks = unit
        shape, group = self.shape, self.group
        heads = slice(kv_heads.start * group, kv_heads.stop * group)
        n_sequences, n_heads = sequences.stop - sequences.start, heads.stop - heads.start
        query = self.query[sequences, heads].reshape(-1, group, shape.q_pos, self.query.shape[-1])
        key, value = self.key[sequences, kv_heads].flatten(0, 1), self.value[sequences, kv_heads].flatten(0, 1)
        received, leaned = self.columns[part, :, sequences, heads].view(2, -1, shape.k_pos).numpy()
        weights = self.weight[sequences], self.lean[sequences], self.back
        largest = len(key) * group * max((rows.stop - rows.start) * (rows.stop + shape.offset) for rows in blocks)
        held = _buffer(largest)
        buffer = torch.from_numpy(held[:largest])  # not a tensor that is kept: one of inference mode would stay one
        for rows in blocks:
            own, n_rows, n_keys = rows.start + shape.offset, rows.stop - rows.start, rows.stop + shape.offset
            scores = buffer[: len(key) * group * n_rows * n_keys].view(len(key), group * n_rows, n_keys)
            # query heads that share a KV head are one product
            asking = torch.empty(len(key), group, n_rows, query.shape[-1])
            torch.mul(query[:, :, rows], self.scaling, out=asking)
            torch.bmm(asking.flatten(1, 2), key[:, :n_keys].mT, out=scores)
            pattern = scores.view(-1, n_rows, n_keys)
            by_row = np.empty((5, len(pattern), n_rows), np.float32)
            compiled.causal_block(pattern.numpy(), own, rows.start, n_heads, *weights, received, leaned, by_row)
            found = torch.from_numpy(by_row)
            self.by_row[:, sequences, heads, rows] = found[:4].view(4, n_sequences, n_heads, n_rows)
            for statistic in self.statistics:
                statistic.watch(CausalBlock(pattern, found[4], sequences, heads, rows, own, self.row_weight))
            result = torch.bmm(scores, value[:, :n_keys])
            self.out[sequences, heads, rows] = result.view(n_sequences, n_heads, n_rows, -1).to(self.out.dtype)
        _spare.append(held)


def _buffer(count: int) -> Any:
    """An fp32 array of at least so many numbers, which the caller puts back into :data:`_spare`."""
    try:
        held = _spare.pop()
    except IndexError:  # not asked before: another thread may take the last one meanwhile
        return np.empty(count, np.float32)
    return held if len(held) >= count else np.empty(count, np.float32)
