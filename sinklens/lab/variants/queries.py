"""What heads do at each query, told apart by the class of the query."""

import math
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.attention import KeySetMass, Statistic, StatisticFactory
from sinklens.attention.block import AttentionShape, Block
from sinklens.capture import LayerRecord
from sinklens.capture.run import standard_statistics
from sinklens.models.tokens import TokenBatch


class FirstKeyMargin(Statistic):
    """Logit margin of key 0 at every query, ``s_i0 - mean(s_ij for 1 <= j < i)``, NaN for ``i < 2``.

    The query's own key is left out, as are keys it does not see; NaN where there is no other or key 0 is hidden.

    Source: Guo et al. (arXiv 2410.13835) and their released code.
    """

    _sums = ("margin",)

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.margin = shape.zeros(shape.batch, shape.heads, shape.q_pos)

    def update(self, block: Block) -> None:
        """Set the margins of the block's rows."""
        if block.scores_incomplete:
            self.margin[block.sequence, block.heads, block.rows] = math.nan
            return
        own = torch.arange(block.rows.start, block.rows.stop, device=block.scores.device) + block.shape.offset
        key = torch.arange(block.keys.start, block.keys.stop, device=block.scores.device)
        others = block.visible_keys & (key > 0) & (key < own[:, None])
        mean = (block.scores * others).sum(-1) / others.sum(-1)
        margin = torch.where(block.visible_keys[:, 0], block.scores[..., 0] - mean, math.nan)
        self.margin[block.sequence, block.heads, block.rows] = margin

    def compute(self) -> dict[str, Tensor]:
        """``margin`` per head and query."""
        return {"margin": self._rows_or_nan(self.margin)}


class QueryClasses:
    """Means over heads, sequences and queries ``i >= 1`` of what each query does, by class.

    Takes layer records of :func:`statistics`. Row 0 is left out: causality decides it. So are, for the mass on
    position 0, the queries that do not see it.

    Args:
        classes: name to members ``[batch pos]``, over all sequences of the run.
        sees_first: which queries see position 0, ``[pos]``.
    """

    NAMES = ("mass_first", "mass_triggers", "missing_mass", "margin", "gate")

    def __init__(self, classes: dict[str, Bool[Tensor, "batch pos"]], sees_first: Bool[Tensor, " pos"]) -> None:
        self.classes, self.sees_first = classes, sees_first
        self._sums: dict[tuple[int, str, str], list[float]] = {}

    def update(self, record: LayerRecord) -> None:
        """Take one layer."""
        rows = slice(record.first_sequence, record.first_sequence + len(record.batch))
        for name in self.NAMES:
            if name not in record.attention:
                continue
            value = record.attention[name].double()
            if name == "mass_first":
                value = value.masked_fill(~self.sees_first, math.nan)
            value = value[..., 1:]
            for label, members in self.classes.items():
                chosen = value[members[rows, None, 1:].expand_as(value) & value.isfinite()]
                held = self._sums.setdefault((record.layer, name, label), [0.0, 0.0])
                held[0] += chosen.sum().item()
                held[1] += chosen.numel()

    def compute(self) -> dict[str, float]:
        """Return ``L0.mass_first_bigram`` and so on; NaN where no query has a value."""
        return {
            f"L{layer}.{name}_{label}": total / count if count else math.nan
            for (layer, name, label), (total, count) in self._sums.items()
        }


def statistics(
    rows: TokenBatch, start: int, triggers: Bool[Tensor, "batch pos"] | None = None
) -> list[StatisticFactory]:
    """Return the standard statistics of a pass and those that :class:`QueryClasses` reads.

    Args:
        rows: sequences of the pass.
        start: index of the first.
        triggers: which keys are triggers, over all sequences; their mass is left out if None.
    """
    first = torch.zeros_like(rows.real)
    first[:, 0] = True
    sets = {"first": first}
    if triggers is not None:
        sets["triggers"] = triggers[start : start + len(rows)]
    return [*standard_statistics(rows), FirstKeyMargin, partial(KeySetMass, sets=sets)]
