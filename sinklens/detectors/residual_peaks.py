"""Residual-state peaks: tokens whose residual stream is far longer than the others', and how it grows by layer."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import LayerSums, Metric
from sinklens.errors import InputError

METRIC = Metric(
    "residual_peak",
    1,
    "L2 norm of the residual stream after a block at one token over the mean norm of the other tokens of the sequence "
    "(norms averaged over sequences first), and the absolute growth of that norm from one block to the next. A peak "
    "is only meaningful relative to the others.",
    "Guo et al. 2024, arXiv 2410.13835; Gu et al. 2025, arXiv 2410.10781",
)

COLUMNS = (
    "layer", "resid_norm_first", "resid_norm_others", "resid_ratio", "resid_growth", "peak_position", "peak_norm",
)  # fmt: skip
POSITION_COLUMNS = ("layer", "position", "resid_norm", "n_sequences")


def peak_ratio(norms: Any, position: int = 0) -> Float[Tensor, "*layer"]:
    """Norm at one token over the mean norm of the others, ``[..., pos] -> [...]``; NaN for a single token.

    Example:
        >>> peak_ratio([30.0, 3.0, 2.0, 1.0]).item()
        15.0
    """
    values = norms if isinstance(norms, Tensor) else torch.as_tensor(np.asarray(norms), dtype=torch.float32)
    length = values.shape[-1]
    if not -length <= position < length:
        raise InputError(f"There is no position {position} among {length} tokens.")
    if length < 2:
        return torch.full(values.shape[:-1], math.nan)
    values = values.double()  # a peak would swallow the others' digits in the difference below
    own = values[..., position]
    return own / ((values.sum(-1) - own) / (length - 1))


@dataclass(frozen=True)
class ResidualPeaks:
    """Residual norms by layer and position.

    Attributes:
        table: One row per layer (-1 = before the first block): ``resid_norm_first`` (position 0),
            ``resid_norm_others``, ``resid_ratio``, ``resid_growth`` (absolute change at position 0 against the layer
            before), ``peak_position`` (position with the largest mean norm), ``peak_norm``.
        by_position: ``layer, position, resid_norm`` averaged over sequences, ``n_sequences``.
    """

    table: pd.DataFrame
    by_position: pd.DataFrame

    def to_dataframe(self) -> pd.DataFrame:
        """The table by layer."""
        return self.table


class ResidualPeakDetector:
    """Mean residual norm of every layer and position. Cost: O(pos) per layer."""

    def __init__(self) -> None:
        self._sums = LayerSums()

    def update(self, record: LayerRecord) -> None:
        """Take one layer; -1 is the embedding output."""
        if record.residual is None:
            return
        real = record.real.to(record.residual.norm.device)
        norm = record.residual.norm.double().masked_fill(~real, 0)
        self._sums.add(record.layer, "norm", norm.sum(0))
        self._sums.add(record.layer, "count", real.double().sum(0))
        others = real.clone()
        others[:, 0] = False
        enough = others.any(1)
        mean = norm[:, 1:].sum(1) / others.sum(1).clamp(min=1)
        self._sums.add(record.layer, "others", torch.stack([mean[enough].sum(), enough.double().sum()]))

    def merge(self, other: Self) -> None:
        """Add what another detector saw of other sequences."""
        self._sums.merge(other._sums)

    def compute(self) -> ResidualPeaks:
        """Both tables."""
        rows, frames = [], []
        previous = math.nan
        for layer, sums in sorted(self._sums.layers.items()):
            count = sums["count"].numpy()
            norm = sums["norm"].numpy() / np.where(count > 0, count, np.nan)
            others_sum, others_count = sums["others"].tolist()
            others = others_sum / others_count if others_count else math.nan
            peak = int(np.argmax(np.where((count >= count.max() / 2) & ~np.isnan(norm), norm, -np.inf)))
            rows.append(
                {
                    "layer": layer,
                    "resid_norm_first": norm[0],
                    "resid_norm_others": others,
                    "resid_ratio": norm[0] / others if others else math.nan,
                    "resid_growth": norm[0] - previous,
                    "peak_position": peak,
                    "peak_norm": norm[peak],
                }
            )
            previous = float(norm[0])
            positions = np.arange(len(norm))
            frames.append(
                pd.DataFrame(
                    {"layer": layer, "position": positions, "resid_norm": norm, "n_sequences": count.astype(int)}
                )
            )
        by_position = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*POSITION_COLUMNS])
        return ResidualPeaks(pd.DataFrame(rows, columns=[*COLUMNS]), by_position)
