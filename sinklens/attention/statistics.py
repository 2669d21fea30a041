"""Exact attention statistics, accumulated a block of query rows at a time.

Each class keeps O(k_pos) or O(q_pos) accumulators in fp32 and offers ``update(block)``, ``merge(other)``
(another object that saw other rows of the same call; associative and commutative) and ``compute()``, which
returns named tensors. Padding rows carry weight 0. A quantity that no real row defines is NaN, never 0.

Shapes in ``compute()``: ``batch head k_pos`` for statistics of keys and ``batch head q_pos`` for those of
queries.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.attention.block import AttentionShape, Block


class Statistic(ABC):
    """Base of all statistics; subclasses list their accumulators in ``_sums``."""

    _sums: tuple[str, ...] = ()

    def __init__(self, shape: AttentionShape) -> None:
        self.shape = shape
        self._row_weight = shape.zeros(shape.batch, shape.q_pos)

    def see(self, block: Block) -> None:
        """Remember which rows were real and call :meth:`update`; this is what the engine calls."""
        if block.first_heads:
            self._row_weight[block.sequence, block.rows] = block.weight
        self.update(block)

    @abstractmethod
    def update(self, block: Block) -> None:
        """Add one block."""

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
    """Attention mass that every key receives, how many queries could see it, and the causal-uniform null.

    ``mass_k = sum_i w_i A_ik``, ``queries_k = sum_i w_i 1[i sees k]`` and
    ``null_mass_k = sum_i w_i 1[i sees k] / n_i`` with ``n_i`` keys visible to query i: the mass if every
    query attended uniformly under this layer's own mask. Mass on a learned sink logit belongs to no key.
    """

    _sums = ("mass", "queries", "null_mass")

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.mass = shape.zeros(shape.batch, shape.heads, shape.k_padded)
        self.queries = shape.zeros(shape.batch, shape.k_padded)
        self.null_mass = shape.zeros(shape.batch, shape.k_padded)

    def update(self, block: Block) -> None:
        """Add ``w @ pattern`` to the keys of the block."""
        self.mass[block.sequence, block.heads, block.keys] += block.weight @ block.pattern
        if block.first_heads:
            uniform = block.weight / block.n_visible.clamp(min=1)
            self.queries[block.sequence, block.keys] += block.spread(block.weight)
            self.null_mass[block.sequence, block.keys] += block.spread(uniform)

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

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.entropy = shape.zeros(shape.batch, shape.heads, shape.q_pos)
        self.null = shape.zeros(shape.batch, shape.q_pos)

    def update(self, block: Block) -> None:
        """Set the entropy of the block's rows."""
        if block.pattern_edited:
            share = block.pattern / block.row_sum.clamp(min=1e-30)[..., None]
            value = torch.special.entr(share).sum(-1)
        else:
            mean_score = torch.linalg.vecdot(block.pattern, block.scores) / block.row_sum.clamp(min=1e-30)
            value = (block.log_normalizer - mean_score).clamp(min=0)
        value = value.masked_fill(block.row_sum <= 0, math.nan)
        self.entropy[block.sequence, block.heads, block.rows] = value
        if block.first_heads:
            self.null[block.sequence, block.rows] = block.n_visible.clamp(min=1).log()

    def compute(self) -> dict[str, Tensor]:
        """``entropy`` per head and query, ``entropy_null`` per query."""
        null = self._rows_or_nan(self.null[:, None])[:, 0]
        return {"entropy": self._rows_or_nan(self.entropy), "entropy_null": null}


class Distance(Statistic):
    """Mean attention distance of each query in tokens, ``sum_j p_ij (i - j)``, over real keys renormalised.

    NaN for a row that keeps no mass.
    """

    _sums = ("distance",)

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.distance = shape.zeros(shape.batch, shape.heads, shape.q_pos)
        self._positions = torch.arange(shape.k_padded, dtype=torch.float32, device=shape.device)

    def update(self, block: Block) -> None:
        """Set the distance of the block's rows."""
        # counted from the block's last row, so that nearby keys stay exact in fp32 at long context
        base = float(block.rows.stop - 1 + self.shape.offset)
        back = base - self._positions[block.keys]
        mean_back = (block.pattern @ back) / block.row_sum.clamp(min=1e-30)
        rows = torch.arange(block.rows.start, block.rows.stop, device=self.shape.device) + self.shape.offset
        value = (mean_back - (base - rows)).masked_fill(block.row_sum <= 0, math.nan)
        self.distance[block.sequence, block.heads, block.rows] = value

    def compute(self) -> dict[str, Tensor]:
        """``distance`` per head and query."""
        return {"distance": self._rows_or_nan(self.distance)}


class TopKey(Statistic):
    """The strongest key of each query and its weight (the first one on exact ties)."""

    _sums = ("weight", "index")

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.weight = shape.zeros(shape.batch, shape.heads, shape.q_pos)
        self.index = torch.zeros_like(self.weight, dtype=torch.int64)

    def update(self, block: Block) -> None:
        """Set weight and index of the block's rows."""
        weight, index = block.top
        self.weight[block.sequence, block.heads, block.rows] = weight
        index = torch.where(weight == 0, -1, index + block.keys.start)
        self.index[block.sequence, block.heads, block.rows] = index

    def compute(self) -> dict[str, Tensor]:
        """``top_weight`` and ``top_key`` (-1 for padding rows and rows without any weight)."""
        real = self._row_weight[:, None] > 0
        return {"top_weight": self._rows_or_nan(self.weight), "top_key": torch.where(real, self.index, -1)}


class KeySetMass(Statistic):
    """Mass of each query on named sets of key positions (BOS, special tokens, given positions)."""

    _sums = ("sets_mass",)

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
            self.sets_mass[index, block.sequence, block.heads, block.rows] = block.pattern @ inside

    def compute(self) -> dict[str, Tensor]:
        """``mass_<name>`` per head and query."""
        return {f"mass_{n}": self._rows_or_nan(self.sets_mass[i]) for i, n in enumerate(self.names)}


class MissingMass(Statistic):
    """``1 - sum_j A_ij``: what a learned sink logit (or an edit) keeps away from the real keys."""

    _sums = ("missing",)

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.missing = shape.zeros(shape.batch, shape.heads, shape.q_pos)

    def update(self, block: Block) -> None:
        """Set the missing mass of the block's rows."""
        self.missing[block.sequence, block.heads, block.rows] = 1 - block.row_sum

    def compute(self) -> dict[str, Tensor]:
        """``missing_mass`` per head and query."""
        return {"missing_mass": self._rows_or_nan(self.missing)}


class DeltaLogit(Statistic):
    """Mean pre-softmax margin of a key over the others, ``mean_i (s_ik - mean_{j != k} s_ij)``.

    The mean runs over real queries i that see k and at least one other key, the inner mean over the other
    keys that i sees. Guo et al. (2024) leave out j = i as well for the Bigram-Backcopy task (a difference
    below 1 % there).
    """

    _sums = ("total", "count")

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.total = shape.zeros(shape.batch, shape.heads, shape.k_padded)
        self.count = shape.zeros(shape.batch, shape.k_padded)

    def update(self, block: Block) -> None:
        """Add ``sum_i n_i/(n_i-1) s_ik - sum_i (sum_j s_ij)/(n_i-1)`` to the keys of the block."""
        if block.scores_incomplete:
            self.total[block.sequence, block.heads] = math.nan
            return
        weight = block.weight * (block.n_visible > 1)
        others = (block.n_visible - 1).clamp(min=1)
        column = (weight * block.n_visible / others) @ block.scores
        row_sums = block.scores.sum(-1) * (weight / others)
        self.total[block.sequence, block.heads, block.keys] += column - block.spread(row_sums)
        if block.first_heads:
            self.count[block.sequence, block.keys] += block.spread(weight)

    def compute(self) -> dict[str, Tensor]:
        """``delta_logit`` per key, NaN for keys that no such query sees."""
        width = self.shape.k_pos
        value = self.total / self.count[:, None]
        return {"delta_logit": value.masked_fill(self.count[:, None] == 0, math.nan)[..., :width]}


class PooledMap(Statistic):
    """Attention maps max-pooled over ``cell x cell`` tokens, for display: at most O(128^2) per head.

    Cells without a visible key are NaN. ``sequences`` limits the maps to some rows of the batch.
    """

    _sums = ("maps", "seen")

    def __init__(self, shape: AttentionShape, sequences: Sequence[int] = (0,)) -> None:
        super().__init__(shape)
        self.sequences = [s for s in sequences if s < shape.batch]
        self._q_cells = math.ceil(shape.q_pos / shape.cell)
        k_cells = shape.k_padded // shape.cell
        self.maps = shape.zeros(len(self.sequences), shape.heads, self._q_cells, k_cells)
        self.seen = shape.zeros(len(self.sequences), self._q_cells, k_cells)

    def update(self, block: Block) -> None:
        """Set the cells of the block's rows; blocks start at multiples of ``cell``."""
        if block.sequence not in self.sequences:
            return
        index, cell = self.sequences.index(block.sequence), self.shape.cell
        pad = -block.cell_max.shape[-2] % cell
        rows = slice(block.rows.start // cell, -(-block.rows.stop // cell))
        keys = slice(block.keys.start // cell, block.keys.stop // cell)
        weighted = block.cell_max * (block.weight > 0)[:, None]
        pooled = torch.nn.functional.pad(weighted, (0, 0, 0, pad)).unflatten(-2, (-1, cell)).amax(-2)
        self.maps[index, block.heads, rows, keys] = pooled
        if block.first_heads:
            self.seen[index, rows, keys] = self._visible_cells(block, pad)

    def _visible_cells(self, block: Block, pad: int) -> Tensor:
        visible = block.visible_keys & (block.weight > 0)[:, None]
        padded = torch.nn.functional.pad(visible.float(), (0, 0, 0, pad))
        cells = padded.unflatten(-1, (-1, self.shape.cell)).unflatten(0, (-1, self.shape.cell))
        seen: Tensor = cells.amax((1, 3))
        return seen

    def compute(self) -> dict[str, Tensor]:
        """``pooled_map [sequence head q_cell k_cell]``, NaN where nothing is visible."""
        return {"pooled_map": self.maps.masked_fill(self.seen[:, None] == 0, math.nan)}


class FullMap(Statistic):
    """Whole attention maps of chosen heads: O(T^2) memory for each, so ask for few."""

    _sums = ("maps", "seen")

    def __init__(self, shape: AttentionShape, heads: Mapping[int, Sequence[int]] | None = None) -> None:
        super().__init__(shape)
        chosen = range(shape.heads) if heads is None else heads.get(shape.layer, ())
        self.heads = list(chosen)
        self.maps = shape.zeros(shape.batch, len(self.heads), shape.q_pos, shape.k_padded)
        self.seen = shape.zeros(shape.batch, shape.q_pos, shape.k_padded) if self.heads else shape.zeros(0)

    def update(self, block: Block) -> None:
        """Copy the rows of chosen heads."""
        for slot, head in enumerate(self.heads):
            if block.heads.start <= head < block.heads.stop:
                rows = block.pattern[head - block.heads.start]
                self.maps[block.sequence, slot, block.rows, block.keys] = rows
        if self.heads and block.first_heads:
            self.seen[block.sequence, block.rows, block.keys] = block.visible_keys.float()

    def compute(self) -> dict[str, Tensor]:
        """``full_map [batch head q_pos k_pos]`` of the chosen heads, NaN where the mask hides the key."""
        if not self.heads:
            return {}
        full = self.maps.masked_fill(self.seen[:, None] == 0, math.nan)
        return {"full_map": full[..., : self.shape.k_pos]}
