"""Every token of a run: for how many heads it is a sink, how large its residual state is, whether it is massive."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.attention import ReceivedMass, StatisticFactory
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector
from sinklens.detectors.massive_activations import ABSOLUTE, RATIO
from sinklens.detectors.massive_channels import fp32_bounds, specific_tokens
from sinklens.detectors.registry import register
from sinklens.detectors.sinks import EPS, MIN_QUERIES, sequence_importance
from sinklens.detectors.token_types import METRIC, token_types
from sinklens.detectors.token_types_verdict import describe_token_types
from sinklens.detectors.value_drains_verdict import DRAINED
from sinklens.models.tokens import TokenBatch

COLUMNS = (
    "sequence", "position", "token_id", "token", "is_special", "is_bos", "n_sink_heads", "received", "n_drained_heads",
    "peak_ratio", "is_massive_absolute", "is_massive_ratio",
)  # fmt: skip


@register
class ExtremeTokenDetector(Detector):
    """Every token of the texts: for how many heads it is a sink, how long its residual state is, whether it is massive.

    A token is massive where an entry meets the criterion and is above ten times its channel's median over the tokens of
    the sequence: a channel that is large at every token would flag them all.

    Tables: ``tokens``, one row per token, and with attention ``token_types``, see
    :func:`~sinklens.detectors.token_types.token_types`.

    Args:
        eps: Threshold on a sequence's importance.
        min_queries: Tokens that fewer queries could see are not judged (``n_sink_heads`` is NaN).
        attention: Whether sinks are counted.

    Cost: six numbers per token of the run.
    """

    name = "tokens"
    metrics = (METRIC,)
    needs = ("hidden",)
    rank = 60

    def __init__(self, eps: float = EPS, min_queries: int = MIN_QUERIES, attention: bool = True) -> None:
        self.eps, self.min_queries, self.attention = eps, min_queries, attention
        self._parts: dict[int, _Part] = {}

    def statistics(self, batch: TokenBatch) -> Sequence[StatisticFactory]:
        """Attention received, unless sinks are not to be counted."""
        return [ReceivedMass] if self.attention else []

    def update(self, record: LayerRecord) -> None:
        """Take one layer of one batch."""
        part = self._parts.setdefault(record.first_sequence, _Part(record.batch))
        if "mass" in record.attention:
            alpha, _ = sequence_importance(record)
            part.n_sink_heads += (alpha > self.eps).sum(1).cpu()
            part.received += alpha.sum(1).cpu()
            part.heads += alpha.shape[1]
        if record.values is not None and record.values.output is not None:
            part.drained += drained_heads(record.values.output, record.real).cpu()
            part.drains_known = True
        if record.residual is not None and record.layer >= 0:
            norm = record.residual.norm.cpu()
            median = torch.nanmedian(norm, dim=1, keepdim=True).values
            part.peak_ratio = torch.maximum(part.peak_ratio, (norm / median).nan_to_num())
            _flag(part, record)

    def merge(self, other: Self) -> None:
        """Add what another detector saw of other sequences."""
        self._parts |= other._parts

    def tables(self) -> dict[str, pd.DataFrame]:
        """Both tables, padding left out."""
        parts = [self._parts[start].table(start, self.min_queries) for start in sorted(self._parts)]
        tokens = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*COLUMNS])
        if not self.attention:
            return {"tokens": tokens}
        heads = max((part.heads for part in self._parts.values()), default=0)
        return {"tokens": tokens, "token_types": token_types(tokens, heads)}

    def verdict(self, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[str]:
        """Which tokens after position 0 are sinks and massive."""
        if "token_types" not in tables:
            return []
        return describe_token_types(tables["token_types"], len(tables.get("heads", ())))


class _Part:
    """What was counted of the sequences of one pass."""

    def __init__(self, batch: TokenBatch) -> None:
        shape = batch.ids.shape
        self.batch, self.heads, self.drains_known = batch, 0, False
        self.n_sink_heads, self.received, self.peak_ratio, self.drained = (torch.zeros(shape) for _ in range(4))
        self.absolute, self.relative = (torch.zeros(shape, dtype=torch.bool) for _ in range(2))

    def table(self, first_sequence: int, min_queries: int) -> pd.DataFrame:
        """One row per token."""
        batch = self.batch
        row, position = batch.real.cpu().nonzero(as_tuple=True)
        judged = (batch.lengths.cpu()[row] - position >= min_queries).numpy() & (self.heads > 0)

        def at(values: Tensor) -> np.ndarray:
            return values.cpu()[row, position].numpy()

        return pd.DataFrame(
            {
                "sequence": row.numpy() + first_sequence,
                "position": position.numpy(),
                "token_id": at(batch.ids),
                "token": [token for tokens in batch.tokens for token in tokens],
                "is_special": at(batch.special),
                "is_bos": at(batch.bos),
                "n_sink_heads": np.where(judged, at(self.n_sink_heads), np.nan),
                "received": at(self.received) / self.heads if self.heads else np.nan,
                "n_drained_heads": at(self.drained) if self.drains_known else np.nan,
                "peak_ratio": at(self.peak_ratio),
                "is_massive_absolute": at(self.absolute),
                "is_massive_ratio": at(self.relative),
            }
        )


def _flag(part: _Part, record: LayerRecord) -> None:
    if record.hidden is None or record.residual is None:
        return
    token_max = record.residual.token_max.to(record.hidden.device)
    bounds = fp32_bounds(record.residual.median.to(record.hidden.device), ABSOLUTE, RATIO)
    found = specific_tokens(record.hidden, token_max, bounds)
    for flags, marked in zip((part.absolute, part.relative), found, strict=True):
        flags |= marked.cpu()


def drained_heads(
    output: Float[Tensor, "batch head pos"], real: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos"]:
    """For how many heads ``|W_O v|`` of a token is below half of the other tokens' mean."""
    norms = output.double().masked_fill(~real[:, None].to(output.device), 0)
    others = (norms.sum(-1, keepdim=True) - norms) / (real.sum(1) - 1).clamp(min=1)[:, None, None].to(norms.device)
    return (norms < DRAINED * others).sum(1).float()
