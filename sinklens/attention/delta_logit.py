"""The pre-softmax margin of each key over the others, by blocks, from sums, or in closed form for long texts."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.attention.block import AttentionShape, Block
from sinklens.attention.causal import CausalSums
from sinklens.attention.statistics import Statistic

CLOSED_FORM_FROM = 1024
"""Keys from which on margins are taken without looking at scores."""


class DeltaLogit(Statistic):
    """Mean pre-softmax margin of a key over the others, ``mean_i (s_ik - mean_{j != k} s_ij)``.

    The mean runs over real queries i that see k and at least one other key, the inner mean over the other
    keys that i sees. Guo et al. (2024) leave out j = i as well for the Bigram-Backcopy task (a difference
    below 1 % there).
    """

    _sums = ("total", "count")
    takes_batches = True
    from_sums = True

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        wide = torch.float32 if shape.device.type == "mps" else torch.float64  # one number joins many blocks
        self.total = shape.zeros(shape.batch, shape.heads, shape.k_padded).to(wide)
        self.count = shape.zeros(shape.batch, shape.k_padded)

    def take_plain(
        self,
        query: Float[Tensor, "batch head q_pos d_head"],
        key: Float[Tensor, "batch kv_head k_pos d_head"],
        scaling: float,
        row_weight: Float[Tensor, "batch q_pos"],
    ) -> bool:
        """For long calls in O(pos d_head): sums of dot products are dot products with cumulative sums (fp64)."""
        k_pos, offset = self.shape.k_pos, self.shape.offset
        if k_pos < CLOSED_FORM_FROM or query.device.type == "mps":  # which has no fp64
            return False
        visible = torch.arange(offset + 1, k_pos + 1, device=query.device).double()
        others = (visible - 1).clamp(min=1)
        first_row = (torch.arange(k_pos, device=query.device) - offset).clamp(min=0)  # that sees key k
        weight = row_weight.double() * (visible > 1)
        self.count[:, :k_pos] += _from_here_on(weight, -1)[:, first_row].float()
        self._row_weight.copy_(row_weight)
        group = query.shape[1] // key.shape[1]
        for sequence in range(query.shape[0]):  # one KV head in hand at a time
            own = weight[sequence]
            for kv_head in range(key.shape[1]):
                heads = slice(kv_head * group, (kv_head + 1) * group)
                q, k = query[sequence, heads].double() * scaling, key[sequence, kv_head].double()
                row_sums = (q * k.cumsum(0)[offset:]).sum(-1)
                mean = _from_here_on(row_sums * (own / others), -1)[:, first_row]
                column = _from_here_on(q * (own * visible / others)[:, None], -2)
                column = column if offset == 0 else column[:, first_row]
                self.total[sequence, heads, :k_pos] += (k * column).sum(-1) - mean
        return True

    def update(self, block: Block) -> None:
        """Add ``sum_i n_i/(n_i-1) s_ik - sum_i (sum_j s_ij)/(n_i-1)`` to the keys of the block."""
        if block.scores_incomplete:
            self.total[block.sequence, block.heads] = math.nan
            return
        weight = block.weight * (block.n_visible > 1)
        others = (block.n_visible - 1).clamp(min=1)
        column = ((weight * block.n_visible / others)[..., None, None, :] @ block.scores).squeeze(-2)
        row_sums = block.scores.sum(-1) * (weight / others)[..., None, :]
        self.total[block.sequence, block.heads, block.keys] += column - block.spread(row_sums)
        if block.first_heads:
            self.count[block.sequence, block.keys] += block.spread(weight)

    def take_sums(self, sums: CausalSums) -> None:
        """Add a whole call."""
        super().take_sums(sums)
        weight, width = sums.row_weight * (sums.n_visible > 1), self.shape.k_pos
        others = (sums.n_visible - 1).clamp(min=1)
        self.total[..., :width] += sums.leaned - sums.spread(sums.score_sum * (weight / others)[:, None])
        self.count[:, :width] += sums.spread(weight)

    def compute(self) -> dict[str, Tensor]:
        """``delta_logit`` per key, NaN for keys that no such query sees."""
        width = self.shape.k_pos
        value = (self.total / self.count[:, None]).float()
        return {"delta_logit": value.masked_fill(self.count[:, None] == 0, math.nan)[..., :width]}


def _from_here_on(x: Tensor, dim: int) -> Tensor:
    """Sum of each entry and all after it."""
    return x.sum(dim, keepdim=True) - x.cumsum(dim) + x
