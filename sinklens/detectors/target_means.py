"""What all stripe scores share: the mean attention that queries give to the keys a pattern names for them."""

import math
from abc import ABC, abstractmethod
from functools import partial
from typing import Self

from jaxtyping import Float, Int
from torch import Tensor

from sinklens.attention import StatisticFactory, TargetMass
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Metric
from sinklens.detectors.head_means import NULL, HeadMeans
from sinklens.detectors.head_scores import HeadScores
from sinklens.models.tokens import TokenBatch


def mean_on_targets(
    pattern: Float[Tensor, "*batch head q_pos k_pos"], targets: Int[Tensor, "*batch q_pos m"]
) -> Float[Tensor, "*batch head"]:
    """Mean over the queries that have targets of their attention on all of them; NaN if none has.

    Args:
        pattern: Attention weights; rows are not renormalised.
        targets: Keys of each query, -1 = none.

    Example:
        >>> import torch
        >>> before = torch.tensor([[-1], [0], [1]])
        >>> mean_on_targets(torch.tensor([[[1.0, 0.0, 0.0], [0.4, 0.6, 0.0], [0.1, 0.8, 0.1]]]), before)
        tensor([0.6000])
    """
    keys = targets[..., None, :, :].expand(*pattern.shape[:-1], targets.shape[-1])
    mass = (pattern.gather(-1, keys.clamp(min=0)) * (keys >= 0)).sum(-1)
    mean: Tensor = mass.masked_fill((keys < 0).all(-1), math.nan).nanmean(-1)
    return mean


class TargetDetector(ABC):
    """Mean attention on a query's targets, per head: base of the detectors of stripes.

    Takes ``target_<name>`` from :class:`~sinklens.attention.TargetMass` with the targets that :meth:`targets` gives,
    ``<name>`` being the name of the metric. Each query counts once, whatever sequence it stands in.
    """

    metric: Metric

    def __init__(self) -> None:
        self._means = HeadMeans()

    @abstractmethod
    def targets(self, batch: TokenBatch) -> Int[Tensor, "batch q_pos m"]:
        """The keys of every query, for :class:`~sinklens.attention.TargetMass`."""

    def statistics(self, batch: TokenBatch) -> list[StatisticFactory]:
        """What the pass has to measure."""
        return [partial(TargetMass, targets={self.metric.name: self.targets(batch)})]

    def update(self, record: LayerRecord) -> None:
        """Take one layer; layers without attention, or without these targets, are left out."""
        name = self.metric.name
        mass, null = record.attention.get(f"target_{name}"), record.attention.get(f"target_{name}{NULL}")
        if mass is not None and null is not None:
            self._means.add(record, {name: mass, name + NULL: null[:, None]})

    def merge(self, other: Self) -> None:
        """Add what another detector with the same settings saw."""
        self._means.merge(other._means)

    def compute(self) -> HeadScores:
        """``layer, head, kv_head``, the score, ``<score>_null``, ``<score>_sd`` over sequences, ``<score>_n``."""
        frame = self._means.table()
        name = self.metric.name
        if not len(frame):
            frame = frame.reindex(columns=["layer", "head", "kv_head", name, name + NULL])
        return HeadScores(frame, {name: self.metric})
