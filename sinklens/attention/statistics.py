"""Exact attention statistics, accumulated a block of query rows at a time.

Each class keeps O(k_pos) or O(q_pos) accumulators in fp32 and offers ``update(block)``, ``merge(other)``
(another object that saw other rows of the same call; associative and commutative) and ``compute()``, which
returns named tensors. Padding rows carry weight 0. A quantity that no real row defines is NaN, never 0.

Shapes in ``compute()``: ``batch head k_pos`` for statistics of keys and ``batch head q_pos`` for those of
queries.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.attention import compiled
from sinklens.attention.block import AttentionShape, Block
from sinklens.attention.causal import CausalBlock, CausalSums
from sinklens.attention.distance_in_chunks import distance_in_chunks


class Statistic(ABC):
    """What is summed up about attention while the model runs; subclasses list their accumulators in ``_sums``."""

    _sums: tuple[str, ...] = ()
    takes_batches: ClassVar[bool] = False
    """Whether :meth:`update` takes blocks of several sequences; else it gets one sequence at a time."""
    uses_up_scores: ClassVar[bool] = False
    """Whether it is shown blocks after the others, because it overwrites scores that nobody else waits for."""
    from_sums: ClassVar[bool] = False
    """Whether :meth:`take_sums` can do without :meth:`update` where a call is plainly causal."""
    watches: ClassVar[bool] = False
    """Whether :meth:`watch` wants to see the weights meanwhile."""

    def __init__(self, shape: AttentionShape) -> None:
        self.shape = shape
        self._row_weight = shape.zeros(shape.batch, shape.q_pos)

    def see(self, block: Block) -> None:
        """Remember which rows were real and call :meth:`update`; this is what the engine calls."""
        if block.first_heads:
            self._row_weight[block.sequence, block.rows] = block.weight
        self.update(block)

    def take_plain(
        self,
        query: Float[Tensor, "batch head q_pos d_head"],
        key: Float[Tensor, "batch kv_head k_pos d_head"],
        scaling: float,
        row_weight: Float[Tensor, "batch q_pos"],
    ) -> bool:
        """Take the whole call at once where a closed form is quicker, and say so; blocks are then not shown.

        Asked only when scores are ``scaling q . k`` and nothing else, under a full causal mask.
        """
        return False

    def watch(self, block: CausalBlock) -> None:
        """Look at the weights of some rows before :meth:`take_sums`; threads call this at once."""
        raise NotImplementedError

    def take_sums(self, sums: CausalSums) -> None:
        """Take a whole plain causal call; statistics that are :attr:`from_sums` extend this."""
        self._row_weight.copy_(sums.row_weight)

    @abstractmethod
    def update(self, block: Block) -> None:
        """Add one block; on a CPU several threads call this at once, each with heads or sequences of its own."""

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """The finished quantities by name."""

    def merge(self, other: Self) -> None:
        """Add the accumulators of an object that saw other query rows of the same call."""
        self._row_weight += other._row_weight
        for name in self._sums:
            getattr(self, name).add_(getattr(other, name).to(self.shape.device))

    def _rows_or_nan(self, value: Tensor) -> Tensor:
        return value.masked_fill(self._row_weight[:, None] == 0, math.nan)


StatisticFactory = Callable[[AttentionShape], Statistic]


class ReceivedMass(Statistic):
    """How much attention every key receives, how many queries could see it, and what uniform attention would give.

    ``mass_k = sum_i w_i A_ik``, ``queries_k = sum_i w_i 1[i sees k]`` and
    ``null_mass_k = sum_i w_i 1[i sees k] / n_i`` with ``n_i`` keys visible to query i: the mass if every
    query attended uniformly under this layer's own mask. Mass on a learned sink logit belongs to no key.
    """

    _sums = ("mass", "queries", "null_mass")
    takes_batches = True
    from_sums = True

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.mass = shape.zeros(shape.batch, shape.heads, shape.k_padded)
        self.queries = shape.zeros(shape.batch, shape.k_padded)
        self.null_mass = shape.zeros(shape.batch, shape.k_padded)

    def update(self, block: Block) -> None:
        """Add ``w @ pattern`` to the keys of the block."""
        weight = block.weight[..., None, None, :]
        received = block.pattern.sum(-2) if block.unpadded else (weight @ block.pattern).squeeze(-2)
        self.mass[block.sequence, block.heads, block.keys] += received
        if block.first_heads:
            uniform = block.weight / block.n_visible.clamp(min=1)
            self.queries[block.sequence, block.keys] += block.spread(block.weight)
            self.null_mass[block.sequence, block.keys] += block.spread(uniform)

    def take_sums(self, sums: CausalSums) -> None:
        """Add a whole call."""
        super().take_sums(sums)
        width = self.shape.k_pos
        self.mass[..., :width] += sums.received
        self.queries[:, :width] += sums.spread(sums.row_weight)
        self.null_mass[:, :width] += sums.spread(sums.row_weight / sums.n_visible)

    def compute(self) -> dict[str, Tensor]:
        """``mass``, ``queries`` and ``null_mass``, each per key."""
        width = self.shape.k_pos
        names = {"mass": self.mass, "queries": self.queries, "null_mass": self.null_mass}
        return {name: value[..., :width] for name, value in names.items()}


class Entropy(Statistic):
    """Entropy of each query's attention in nats, over real keys and renormalised to sum to one.

    ``H_i = log Z_i - sum_j p_ij s_ij`` with ``p`` the weights divided by their row sum; mass on a learned
    sink logit is not an outcome (it is reported as missing mass), and a row that keeps no mass at all has
    none (NaN). The null of a row that sees n keys is ``log n``.
    """

    _sums = ("entropy", "null")
    takes_batches = True
    from_sums = True
    uses_up_scores = True

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.entropy = shape.zeros(shape.batch, shape.heads, shape.q_pos)
        self.null = shape.zeros(shape.batch, shape.q_pos)

    def update(self, block: Block) -> None:
        """Set the entropy of the block's rows."""
        if block.pattern_edited:
            share = block.pattern / block.row_sum.clamp(min=1e-30)[..., None]
            value = torch.special.entr(share).sum(-1).masked_fill(block.row_sum <= 0, math.nan)
        else:
            # in place: a fresh tensor of this size would push scores and weights out of the cache
            product = block.scores.mul_(block.pattern) if block.scores_spare else block.scores * block.pattern
            mean_score = product.sum(-1)
            if block.kept_mass is not None:
                mean_score = mean_score / block.kept_mass
            value = block.log_normalizer - mean_score
        self.entropy[block.sequence, block.heads, block.rows] = value
        if block.first_heads:
            self.null[block.sequence, block.rows] = block.n_visible.clamp(min=1).log()

    def take_sums(self, sums: CausalSums) -> None:
        """Set the entropy of all rows."""
        super().take_sums(sums)
        self.entropy.copy_(sums.log_normalizer - sums.mean_score)
        self.null.copy_(sums.n_visible.log())

    def compute(self) -> dict[str, Tensor]:
        """``entropy`` per head and query, ``entropy_null`` per query."""
        null = self._rows_or_nan(self.null[:, None])[:, 0]
        return {"entropy": self._rows_or_nan(self.entropy.clamp(min=0)), "entropy_null": null}


class Distance(Statistic):
    """Mean attention distance of each query in tokens, ``sum_j p_ij (i - j)``, over real keys renormalised.

    NaN for a row that keeps no mass.
    """

    _sums = ("distance",)
    takes_batches = True
    from_sums = True

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.distance = shape.zeros(shape.batch, shape.heads, shape.q_pos)

    def update(self, block: Block) -> None:
        """Set the distance of the block's rows."""
        first_row = block.rows.start + self.shape.offset
        if self.shape.device.type == "cuda":  # blocks of hundreds of rows
            self.distance[block.sequence, block.heads, block.rows] = distance_in_chunks(
                block.pattern, first_row, block.keys.start
            )
            return
        # counted from the block's last row, so that nearby keys stay exact in fp32 at long context
        last = block.rows.stop - 1 + self.shape.offset
        device = self.shape.device
        back = torch.arange(last - block.keys.start, last - block.keys.stop, -1, device=device).float()
        value = block.pattern @ back
        if block.pattern_edited or block.kept_mass is not None:
            value = value / block.row_sum
        ahead = torch.arange(last - first_row, -1, -1, device=device).float()
        self.distance[block.sequence, block.heads, block.rows] = value - ahead

    def take_sums(self, sums: CausalSums) -> None:
        """Set the distance of all rows."""
        super().take_sums(sums)
        self.distance.copy_(sums.distance)

    def compute(self) -> dict[str, Tensor]:
        """``distance`` per head and query."""
        return {"distance": self._rows_or_nan(self.distance)}


class TopKey(Statistic):
    """The strongest key of each query and its weight (the first one on exact ties)."""

    _sums = ("weight", "index")
    takes_batches = True
    from_sums = True
    watches = True

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.weight = shape.zeros(shape.batch, shape.heads, shape.q_pos)
        self.index = torch.zeros_like(self.weight, dtype=torch.int64)

    def update(self, block: Block) -> None:
        """Set weight and index of the block's rows."""
        weight, index = block.top
        self.weight[block.sequence, block.heads, block.rows] = weight
        self.index[block.sequence, block.heads, block.rows] = index + block.keys.start

    def watch(self, block: CausalBlock) -> None:
        """Set weight and index of the block's rows."""
        index = np.empty(block.largest.shape, np.int64)
        compiled.first_block(block.weights.numpy(), block.own, block.largest.numpy(), index)
        for mine, found in ((self.weight, block.largest), (self.index, torch.from_numpy(index))):
            place = block.sequences, block.heads, block.rows
            mine[place] = found.view_as(mine[place])

    def compute(self) -> dict[str, Tensor]:
        """``top_weight`` and ``top_key`` (-1 for padding rows and rows without any weight)."""
        real = (self._row_weight[:, None] > 0) & (self.weight > 0)
        return {"top_weight": self._rows_or_nan(self.weight), "top_key": torch.where(real, self.index, -1)}


class KeySetMass(Statistic):
    """How much attention each query gives to named sets of keys (BOS, special tokens, given positions)."""

    _sums = ("sets_mass",)
    takes_batches = True
    from_sums = True
    watches = True

    def __init__(self, shape: AttentionShape, sets: Mapping[str, Bool[Tensor, "batch k_pos"]]) -> None:
        super().__init__(shape)
        self.names = tuple(sets)
        self.sets_mass = shape.zeros(len(sets), shape.batch, shape.heads, shape.q_pos)
        members = [s.to(device=shape.device, dtype=torch.float32) for s in sets.values()]
        stacked = torch.stack(members) if members else shape.zeros(0, shape.batch, shape.k_pos)
        self._members = torch.nn.functional.pad(stacked, (0, shape.k_padded - shape.k_pos))

    def update(self, block: Block) -> None:
        """Set the masses of the block's rows."""
        for index in range(len(self.names)):
            inside = self._members[index, block.sequence, block.keys]
            mass = (block.pattern @ inside[..., None, :, None]).squeeze(-1)
            self.sets_mass[index, block.sequence, block.heads, block.rows] = mass

    def watch(self, block: CausalBlock) -> None:
        """Set the masses of the block's rows."""
        for index, (keys, ends) in enumerate(self._keys):
            first = int(ends[block.sequences.start - 1]) if block.sequences.start else 0
            mass = np.empty(block.weights.shape[:2], np.float32)
            own = keys[first:], ends[block.sequences] - first
            n_heads = block.heads.stop - block.heads.start
            compiled.set_block(block.weights.numpy(), block.own, n_heads, *own, mass)
            rows = torch.from_numpy(mass).view(-1, n_heads, mass.shape[-1])
            self.sets_mass[index, block.sequences, block.heads, block.rows] = rows

    @cached_property
    def _keys(self) -> list[tuple[Any, Any]]:
        """For each set its keys, sequence after sequence, and where each sequence's end."""
        return [
            # contiguous, whatever their number: for another layout the code would be compiled once more
            (members.nonzero()[:, 1].contiguous().numpy(), members.sum(-1).long().cumsum(0).numpy())
            for members in self._members
        ]

    def compute(self) -> dict[str, Tensor]:
        """``mass_<name>`` per head and query."""
        return {f"mass_{n}": self._rows_or_nan(self.sets_mass[i]) for i, n in enumerate(self.names)}


class MissingMass(Statistic):
    """How much attention reaches no key, because a learned sink logit or an edit keeps it: ``1 - sum_j A_ij``."""

    _sums = ("missing",)
    takes_batches = True
    from_sums = True

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.missing = shape.zeros(shape.batch, shape.heads, shape.q_pos)

    def update(self, block: Block) -> None:
        """Set the missing mass of the block's rows; a plain softmax misses nothing."""
        if block.kept_mass is None and not block.pattern_edited:
            return
        self.missing[block.sequence, block.heads, block.rows] = 1 - block.row_sum

    def compute(self) -> dict[str, Tensor]:
        """``missing_mass`` per head and query."""
        return {"missing_mass": self._rows_or_nan(self.missing)}
