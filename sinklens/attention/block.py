"""One block of query rows of one layer and sequence: what every statistic and every edit gets to see."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one layer's attention call, known before the first block.

    ``k_padded`` is ``k_pos`` rounded up to a multiple of ``cell``; blocks may carry these hidden extra
    columns, and accumulators are ``k_padded`` wide until :meth:`crop`.
    """

    layer: int
    batch: int
    heads: int
    q_pos: int
    k_pos: int
    k_padded: int
    cell: int
    device: torch.device

    @property
    def offset(self) -> int:
        """Position of query row 0 among the keys (greater than 0 with a KV cache)."""
        return self.k_pos - self.q_pos

    def zeros(self, *size: int) -> Tensor:
        """An fp32 accumulator on the layer's device."""
        return torch.zeros(size, dtype=torch.float32, device=self.device)


@dataclass
class Block:
    """Scores and pattern of some heads, for query rows ``rows`` and keys ``keys``.

    It is of one sequence, or, for a statistic that :attr:`~sinklens.attention.Statistic.takes_batches`, of several with
    one mask: ``sequence`` is then a slice, and every tensor but ``visible`` and ``n_visible`` has them as first axis.

    Attributes:
        shape: Sizes of the whole call.
        sequence: Batch index, or a slice of several.
        heads: Query heads covered, a slice of ``range(shape.heads)``.
        rows: Query rows covered, counted within the call.
        keys: Keys covered; every key outside is hidden from all of these rows.
        scores: Pre-softmax scores ``[head q_pos k_pos]``, scaled, soft-capped, biased and edited. While edits
            run, hidden keys hold ``-inf``; statistics see 0 there.
        pattern: Attention weights ``[head q_pos k_pos]``, exactly 0 at hidden keys. Rows sum to
            ``kept_mass``.
        visible: Which keys a row sees, or ``None`` for "all keys up to its own position".
        weight: 1 for real query rows, 0 for padding or rows that see nothing.
        n_visible: Number of keys each row sees.
        kept_mass: Weight ``[head q_pos]`` that a learned sink logit left to the real keys, ``None`` without
            one.
        top_score: Largest score of each row as the softmax took it, ``None`` where that is not known.
        unpadded: True when every row is known to be a real token that sees a key (weight 1).
        pattern_edited: True when rows may sum to something else: an edit changed the pattern after the
            softmax, or hid every key of a row.
        scores_incomplete: True when a visible key has no finite score (an edit hid it, or the architecture
            only shows weights and one underflowed): margins are then not applicable.
        scores_spare: True while the last statistic is shown the block, which may overwrite the scores.
    """

    shape: AttentionShape
    sequence: Any  # an int for everyone who asked for nothing else
    heads: slice
    rows: slice
    keys: slice
    scores: Float[Tensor, "... head q_pos k_pos"]
    pattern: Float[Tensor, "... head q_pos k_pos"]
    visible: Bool[Tensor, "q_pos k_pos"] | None
    weight: Float[Tensor, "... q_pos"]
    n_visible: Float[Tensor, " q_pos"]
    kept_mass: Float[Tensor, "... head q_pos"] | None = None
    top_score: Float[Tensor, "... head q_pos"] | None = None
    unpadded: bool = False
    pattern_edited: bool = False
    scores_incomplete: bool = False
    scores_spare: bool = False

    @property
    def first_heads(self) -> bool:
        """True once per row block: when head-independent quantities should be added."""
        return bool(self.heads.start == 0)

    def by_sequence(self) -> Iterator["Block"]:
        """The same as blocks of one sequence each."""
        if isinstance(self.sequence, int):
            yield self
            return
        for index, sequence in enumerate(range(self.sequence.start, self.sequence.stop)):
            own: dict[str, Any] = {
                name: None if (value := getattr(self, name)) is None else value[index]
                for name in ("scores", "pattern", "weight", "kept_mass", "top_score")
            }
            yield replace(self, sequence=sequence, **own)

    def changed(self) -> None:
        """Forget what was derived from scores and pattern; called after every edit."""
        for name in ("row_sum", "cell_max", "top", "log_normalizer"):
            self.__dict__.pop(name, None)

    @cached_property
    def visible_keys(self) -> Bool[Tensor, "q_pos k_pos"]:
        """``visible``, with the plain causal triangle written out."""
        if self.visible is not None:
            return self.visible
        keys = torch.arange(self.keys.start, self.keys.stop, device=self.pattern.device)
        rows = torch.arange(self.rows.start, self.rows.stop, device=self.pattern.device)
        return keys[None] <= (rows + self.shape.offset)[:, None]

    @cached_property
    def row_sum(self) -> Float[Tensor, "*head q_pos"]:
        """Mass that each row puts on real keys (1 without a learned sink or an edit)."""
        if self.pattern_edited:
            return self.pattern.sum(-1)
        if self.kept_mass is not None:
            return self.kept_mass
        return torch.ones_like(self.pattern[..., 0]) * (self.n_visible > 0)

    @cached_property
    def cell_max(self) -> Float[Tensor, "*head q_pos k_cell"]:
        """Largest weight of each row within every cell of ``shape.cell`` neighbouring keys."""
        if self.shape.cell == 1:
            return self.pattern
        weight: Tensor = self.pattern.unflatten(-1, (-1, self.shape.cell)).amax(-1)
        return weight

    @cached_property
    def top(self) -> tuple[Float[Tensor, "*head q_pos"], Int[Tensor, "*head q_pos"]]:
        """Weight of each row's strongest key, and that key counted within this block."""
        weight, cell = self.cell_max.max(-1)
        if self.shape.cell == 1:
            return weight, cell
        cells = self.pattern.unflatten(-1, (-1, self.shape.cell))
        index = cell[..., None, None].expand(*cell.shape, 1, self.shape.cell)
        inside = cells.gather(-2, index).squeeze(-2).argmax(-1)
        return weight, cell * self.shape.cell + inside

    @cached_property
    def log_normalizer(self) -> Float[Tensor, "*head q_pos"]:
        """Log of the softmax denominator over real keys: ``s_top - log(p_top / row_sum)``."""
        if self.top_score is not None and not self.pattern_edited:
            highest = self.pattern.amax(-1)
            return self.top_score - (highest if self.kept_mass is None else highest / self.kept_mass).log()
        weight, index = self.top
        if self.pattern_edited or self.kept_mass is not None:
            weight = weight / self.row_sum
        return self.scores.gather(-1, index[..., None]).squeeze(-1) - weight.log()

    def spread(self, row_value: Float[Tensor, "*head q_pos"]) -> Float[Tensor, "*head k_pos"]:
        """Sum over the rows of ``row_value_i`` wherever row i sees key k: ``sum_i row_value_i 1[i sees k]``.

        Cheap for a plain causal block: all rows see the keys before the block, and the triangle is a reversed
        cumulative sum.
        """
        if self.visible is not None:
            return row_value @ self.visible.to(row_value.dtype)
        n_keys = self.keys.stop - self.keys.start
        own = self.rows.start + self.shape.offset - self.keys.start  # column of the first row's own position
        width = row_value.shape[-1]
        triangle = row_value.flip(-1).cumsum(-1).flip(-1)
        out = row_value.new_zeros(*row_value.shape[:-1], n_keys)
        out[..., : own + 1] = triangle[..., :1]
        out[..., own + 1 : own + width] = triangle[..., 1:]
        return out
