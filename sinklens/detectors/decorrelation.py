"""The BOS decorrelation measure: how much the other tokens' residual states point along the first token's."""

import math
from typing import Self

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector, LayerSums, Metric
from sinklens.detectors.bos_similarity import bos_cosine
from sinklens.detectors.registry import register
from sinklens.errors import InputError

METRIC = Metric(
    "bos_decorrelation",
    1,
    "Mean over layers of the mean over tokens s > 0 of cos(h_0, h_s)^2, h the residual stream after a layer; embedding "
    "and last layer are left out. 1: all tokens point along the first, 0: all at right angles to it. Null: 1 / d_model "
    "of random directions.",
    "Anand et al. 2025, arXiv 2510.22603; null added here",
)

COLUMNS = ("layer", "bos_cosine", "bos_cosine_sq", "null", "in_loss", "n_tokens")


def decorrelation_loss(
    hidden: Float[Tensor, "layer batch pos d_model"], real: Bool[Tensor, "batch pos"] | None = None
) -> Float[Tensor, ""]:
    """The loss term that pushes the other tokens away from the BOS direction; differentiable.

    ``L = (1/|layers|) sum_l (1/(B(S-1))) sum_b sum_{s>0} cos(h^l_{b,0}, h^l_{b,s})^2``; with padding the inner mean
    runs over real tokens. There is no stop-gradient on the BOS, as in the authors' code, so the loss can also fall by
    moving the BOS.

    Args:
        hidden: Outputs of the layers that count: all but the last in the paper, without the embedding.
        real: Which positions are real tokens; default: all. Position 0 must be.

    Raises:
        InputError: Another number of axes, no layer, or no token beside the first.

    Source: Anand et al. 2025, arXiv 2510.22603 (there multiplied by 1e4).

    Example:
        >>> h = torch.tensor([[[[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0]]]])
        >>> decorrelation_loss(h).item()
        0.5
    """
    if hidden.ndim != 4 or hidden.shape[0] == 0:
        raise InputError(f"Expected hidden states [layer batch pos d_model], got shape {tuple(hidden.shape)}.")
    counted = torch.ones(hidden.shape[1:3], dtype=torch.bool) if real is None else real
    others = _others(counted.to(hidden.device))
    if not bool(others.any()):
        raise InputError("There is no token beside the first to compare with it.")
    squares = bos_cosine(hidden) ** 2
    return torch.where(others, squares, 0).sum((1, 2)).mean() / others.sum()


def _others(real: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    others = real.clone()
    others[:, 0] = False
    return others


@register
class DecorrelationDetector(Detector):
    """How much the residual states of all tokens point along the first token's: 1 in the same direction, 0 unrelated.

    Table ``decorrelation``, one row per layer (-1 = before the first layer): ``bos_cosine`` and ``bos_cosine_sq``
    (means over all tokens but the first of each sequence), ``null`` = 1 / d_model for the square, ``in_loss`` (whether
    the layer enters the loss), ``n_tokens``. The loss is the mean of
    ``bos_cosine_sq`` over the layers in the loss; a model of one layer has none.

    Cost: O(pos d_model) per layer; a few numbers are kept.
    """

    name = "decorrelation"
    metrics = (METRIC,)
    needs = ("hidden",)
    by_default = True
    rank = 90

    def __init__(self) -> None:
        self._sums = LayerSums()
        self._width: dict[int, int] = {}

    def update(self, record: LayerRecord) -> None:
        """Take one layer; -1 is the embedding output."""
        if record.hidden is None:
            return
        others = _others(record.real.to(record.hidden.device))
        length = None if record.residual is None else record.residual.norm
        cosine = bos_cosine(record.hidden, 0, length).masked_fill(~others, 0).double()
        self._sums.add(record.layer, "moments", torch.stack([cosine.sum(), (cosine**2).sum(), others.double().sum()]))
        self._width[record.layer] = record.hidden.shape[-1]

    def merge(self, other: Self) -> None:
        """Add what another detector saw of other sequences."""
        self._sums.merge(other._sums)
        self._width |= other._width

    def tables(self) -> dict[str, pd.DataFrame]:
        """The table."""
        last = max(self._sums.layers, default=-1)
        rows = []
        for layer, sums in sorted(self._sums.layers.items()):
            first, second, count = sums["moments"].tolist()
            means = (first / count, second / count) if count else (math.nan, math.nan)
            rows.append((layer, *means, 1 / self._width[layer], 0 <= layer < last, int(count)))
        return {"decorrelation": pd.DataFrame(rows, columns=[*COLUMNS])}
