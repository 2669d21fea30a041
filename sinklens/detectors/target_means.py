"""What all stripe scores share: the mean attention that queries give to the keys a pattern names for them."""

import math
from abc import abstractmethod
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor

from sinklens.attention import StatisticFactory, TargetMass
from sinklens.capture.record import LayerRecord
from sinklens.detectors.head_means import NULL, HeadMeansDetector
from sinklens.detectors.repeats import Repeats
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


class TargetDetector(HeadMeansDetector):
    """Mean attention on the keys that are named for each query: base of the detectors of stripes.

    Takes ``target_<name>`` from :class:`~sinklens.attention.TargetMass` with the targets that :meth:`targets` gives.
    Each query counts once, whatever sequence it stands in.
    """

    @abstractmethod
    def targets(self, batch: TokenBatch) -> Int[Tensor, "batch q_pos m"]:
        """The keys of every query, for :class:`~sinklens.attention.TargetMass`."""

    def statistics(self, batch: TokenBatch) -> list[StatisticFactory]:
        """What the pass has to measure."""
        return [partial(TargetMass, targets={self.name: self.targets(batch)})]

    def update(self, record: LayerRecord) -> None:
        """Take one layer; layers without attention, or without these targets, are left out."""
        mass, null = (record.attention.get(f"target_{self.name}{end}") for end in ("", NULL))
        if mass is not None and null is not None:
            self._means.add(record, {self.name: mass, self.name + NULL: null[:, None]})


class RepeatDetector(TargetDetector):
    """Base of the detectors that read repeated random tokens, see :func:`~sinklens.passes.repeated_tokens`.

    Args:
        repeats: Where the copies lie; all sequences must lie so.
    """

    def __init__(self, repeats: Repeats) -> None:
        super().__init__()
        self.repeats = repeats

    @abstractmethod
    def copies(self) -> Int[Tensor, "q_pos m"]:
        """The keys of every query of one sequence."""

    def targets(self, batch: TokenBatch) -> Int[Tensor, "batch q_pos m"]:
        """The same for all of them."""
        return self.repeats.of_batch(self.copies(), batch)
