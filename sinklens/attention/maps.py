"""Attention maps as statistics: max-pooled for display, or whole for a few chosen heads."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sinklens.attention import compiled
from sinklens.attention.block import AttentionShape, Block
from sinklens.attention.causal import CausalBlock, CausalSums
from sinklens.attention.statistics import Statistic


class PooledMap(Statistic):
    """Attention maps max-pooled over ``cell x cell`` tokens, for display: at most O(128^2) per head.

    Cells without a visible key are NaN. ``sequences`` limits the maps to some rows of the batch.
    """

    _sums = ("maps", "seen")
    from_sums = True
    watches = True

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
        rows = slice(block.rows.start // cell, -(-block.rows.stop // cell))
        keys = slice(block.keys.start // cell, block.keys.stop // cell)
        weights = block.pattern if block.unpadded else block.pattern * (block.weight > 0)[:, None]
        # rows first: they are pooled by whole vectors, and a ``cell``-th of the entries is left for the keys
        pooled = _pool_rows(weights, cell)
        self.maps[index, block.heads, rows, keys] = pooled.unflatten(-1, (-1, cell)).amax(-1)
        if block.first_heads:
            self.seen[index, rows, keys] = self._visible_cells(block)

    def watch(self, block: CausalBlock) -> None:
        """Set the cells of the block's rows."""
        n_heads = block.heads.stop - block.heads.start
        for index, sequence in enumerate(self.sequences):
            if block.sequences.start <= sequence < block.sequences.stop:
                first = (sequence - block.sequences.start) * n_heads
                weights, real = block.weights[first : first + n_heads].numpy(), block.row_weight[sequence].numpy()
                maps = self.maps[index, block.heads].numpy()
                compiled.pooled_block(weights, block.rows.start, self.shape.cell, real, maps)

    def take_sums(self, sums: CausalSums) -> None:
        """Note which cells have a visible key: those that the last real row of a cell sees."""
        super().take_sums(sums)
        cell, k_cells = self.shape.cell, self.maps.shape[-1]
        last = _pool_rows((sums.n_visible * sums.row_weight[self.sequences])[..., None], cell)
        self.seen.copy_(torch.arange(k_cells) * cell < last)

    def _visible_cells(self, block: Block) -> Tensor:
        cell = self.shape.cell
        if block.visible is None and block.unpadded:  # the last row of a cell sees the most
            row = torch.arange(block.rows.start, block.rows.stop, cell, device=self.shape.device) + cell - 1
            row = row.clamp(max=block.rows.stop - 1) + self.shape.offset
            key = torch.arange(block.keys.start, block.keys.stop, cell, device=self.shape.device)
            return (key[None] <= row[:, None]).float()
        visible = block.visible_keys & (block.weight > 0)[:, None]
        return _pool_rows(visible.float().unflatten(-1, (-1, cell)).amax(-1), cell)

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


def _pool_rows(x: Tensor, cell: int) -> Tensor:
    """Maximum over every ``cell`` rows of the second-last axis, the last group possibly shorter; x >= 0."""
    extra = -x.shape[-2] % cell
    padded = torch.nn.functional.pad(x, (0, 0, 0, extra)) if extra else x
    pooled: Tensor = padded.unflatten(-2, (-1, cell)).amax(-2)
    return pooled
