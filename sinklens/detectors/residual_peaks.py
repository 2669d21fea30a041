"""Residual-state peaks: tokens whose residual stream is far longer than the others', and how it grows by layer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector, LayerSums, Metric, frame_of
from sinklens.detectors.registry import register
from sinklens.detectors.residual_peaks_verdict import PEAK, describe_peaks
from sinklens.errors import InputError
from sinklens.wording import several

METRIC = Metric(
    "residual_peak",
    2,
    "L2 norm of the residual stream after a layer. Of every token: over the median norm of its sequence's tokens "
    "(peak_ratio; a second peak does not hide the first), a peak from 3 on. Of position 0: over the mean norm of the "
    "other tokens (resid_ratio; norms averaged over sequences first), and its absolute growth from one layer to the "
    "next. A peak is only meaningful relative to the others.",
    "Guo et al. 2024, arXiv 2410.13835; Gu et al. 2025, arXiv 2410.10781",
)

SHORTEST = 3
"""Tokens a sequence needs for its median to be of other tokens than the largest."""
COLUMNS = (
    "layer", "resid_norm_first", "resid_norm_others", "resid_ratio", "resid_growth", "peak_position", "peak_norm",
    "peak_ratio", "n_peak_sequences", "n_peaks",
)  # fmt: skip
ENTERING = ("resid_norm_first", "resid_norm_others", "resid_ratio")
POSITION_COLUMNS = ("layer", "position", "resid_norm", "n_sequences")
PEAK_COLUMNS = ("layer", "position", "token", "n_largest", "n_peaks", "n_of", "peak_ratio")


def peak_ratio(norms: Any, position: int = 0) -> Float[Tensor, "*layer"]:
    """Norm at one token over the mean norm of the others, ``[..., pos] -> [...]``; NaN for a single token.

    Example:
        >>> peak_ratio([30.0, 3.0, 2.0, 1.0]).item()
        15.0
    """
    values = norms if isinstance(norms, Tensor) else torch.as_tensor(np.asarray(norms), dtype=torch.float32)
    length = values.shape[-1]
    if not -length <= position < length:
        raise InputError(f"There is no position {position} among {several(length, 'token')}.")
    if length < 2:
        return torch.full(values.shape[:-1], math.nan)
    values = values.double()  # a peak would swallow the others' digits in the difference below
    own = values[..., position]
    return own / ((values.sum(-1) - own) / (length - 1))


@register
class ResidualPeakDetector(Detector):
    """How long the residual state of each token is beside the others' of its text: 1 as long, from 3 on a peak.

    Tables: ``layers`` (-1 = before the first layer): ``resid_norm_first`` (position 0), ``resid_norm_others``,
    ``resid_ratio``, ``resid_growth`` (absolute change at position 0 against the layer before), ``peak_position``
    (position with the largest mean norm), ``peak_norm``; ``peak_ratio`` (a sequence's largest norm over its median,
    mean over sequences), ``n_peak_sequences`` with a peak, ``n_peaks`` in all of them; columns that end in ``_in``
    belong to the stream that enters the layer, which its attention reads: what left the layer before.
    ``residual_norms``: ``layer, position, resid_norm`` averaged over sequences, ``n_sequences``. ``peaks``: which
    tokens stand out, one row per layer, position and token string: ``n_largest`` sequences where it has the largest
    norm, ``n_peaks`` where it is a peak, of ``n_of`` sequences with at least 3 tokens; ``peak_ratio``, the mean over
    both kinds. Tokens that are neither in any sequence are left out.

    Cost: O(batch pos) per layer.
    """

    name = "residual_peaks"
    metrics = (METRIC,)
    by_default = True
    rank = 40

    def __init__(self) -> None:
        self._sums = LayerSums()
        self._tokens: dict[tuple[int, int, str], _Seen] = {}

    def update(self, record: LayerRecord) -> None:
        """Take one layer; -1 is the embedding output."""
        if record.residual is None:
            return
        lengths = record.residual.norm.double()
        real = record.real.to(lengths.device)
        norm = lengths.masked_fill(~real, 0)
        self._sums.add(record.layer, "norm", norm.sum(0))
        self._sums.add(record.layer, "count", real.double().sum(0))
        others = real.clone()
        others[:, 0] = False
        enough = others.any(1)
        mean = norm[:, 1:].sum(1) / others.sum(1).clamp(min=1)
        self._sums.add(record.layer, "others", torch.stack([mean[enough].sum(), enough.double().sum()]))
        self._stand_out(record, lengths.cpu())

    def _stand_out(self, record: LayerRecord, norm: Float[Tensor, "batch pos"]) -> None:
        """Count the largest token and the peaks of every sequence that is long enough and has no NaN."""
        real = record.real.cpu()
        ratio = norm / norm.masked_fill(~real, math.nan).nanmedian(1, keepdim=True).values
        judged = (real.sum(1) >= SHORTEST) & (ratio.isfinite() | ~real).all(1)
        ratio = ratio.masked_fill(~real | ~judged[:, None], -math.inf)
        most, where = ratio.max(1)
        largest = torch.zeros_like(real).scatter_(1, where[:, None], True) & judged[:, None]
        peaks = ratio >= PEAK
        number = judged.double().sum()
        sums = [most[judged].sum(), peaks.any(1).double().sum(), peaks.double().sum(), number]
        self._sums.add(record.layer, "peaks", torch.stack(sums))
        for row, position in (largest | peaks).nonzero().tolist():
            key = (record.layer, position, record.batch.tokens[row][position])
            seen = self._tokens.setdefault(key, _Seen())
            seen.add(bool(largest[row, position]), bool(peaks[row, position]), float(ratio[row, position]), 1)

    def merge(self, other: Self) -> None:
        """Add what another detector saw of other sequences."""
        self._sums.merge(other._sums)
        for key, seen in other._tokens.items():
            self._tokens.setdefault(key, _Seen()).add(seen.largest, seen.peaks, seen.ratio, seen.number)

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables."""
        rows, parts = [], []
        previous = math.nan
        for layer, sums in self._sums.arrays():
            count = sums["count"]
            norm = sums["norm"] / np.where(count > 0, count, np.nan)
            others_sum, others_count = sums["others"].tolist()
            others = others_sum / others_count if others_count else math.nan
            peak = int(np.argmax(np.where((count >= count.max() / 2) & ~np.isnan(norm), norm, -np.inf)))
            ratio_sum, peak_sequences, peaks, judged = sums["peaks"].tolist()
            rows.append(
                {
                    "layer": layer,
                    "resid_norm_first": norm[0],
                    "resid_norm_others": others,
                    "resid_ratio": norm[0] / others if others else math.nan,
                    "resid_growth": norm[0] - previous,
                    "peak_position": peak,
                    "peak_norm": norm[peak],
                    "peak_ratio": ratio_sum / judged if judged else math.nan,
                    "n_peak_sequences": int(peak_sequences),
                    "n_peaks": int(peaks),
                }
            )
            previous = float(norm[0])
            positions = np.arange(len(norm))
            parts.append({"layer": layer, "position": positions, "resid_norm": norm, "n_sequences": count.astype(int)})
        by_position = frame_of(parts, POSITION_COLUMNS)
        layers = pd.DataFrame(rows, columns=[*COLUMNS])
        for column in ENTERING:
            layers[f"{column}_in"] = layers[column].shift(1)
        return {"layers": layers, "residual_norms": by_position, "peaks": self._stood_out()}

    def verdict(self, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[str]:
        """Where the largest residual norm stands, how it grows, and the peaks elsewhere."""
        if "peaks" not in tables:
            return []
        return describe_peaks(tables["layers"], tables["peaks"], tables["residual_norms"])

    def _stood_out(self) -> pd.DataFrame:
        of = {layer: int(sums["peaks"][3]) for layer, sums in self._sums.layers.items()}
        rows = [
            (layer, position, token, seen.largest, seen.peaks, of[layer], seen.ratio / seen.number)
            for (layer, position, token), seen in sorted(self._tokens.items())
        ]
        return pd.DataFrame(rows, columns=[*PEAK_COLUMNS])


@dataclass
class _Seen:
    """How often one token at one position stood out after one layer."""

    largest: int = 0
    peaks: int = 0
    ratio: float = 0.0
    number: int = 0

    def add(self, largest: int, peaks: int, ratio: float, number: int) -> None:
        self.largest += largest
        self.peaks += peaks
        self.ratio += ratio
        self.number += number
