"""How each head spreads its attention: entropy, distance, mass on BOS and special tokens, missing mass."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from sinklens.attention import Distance, Entropy, KeySetMass, MissingMass, StatisticFactory
from sinklens.capture.record import LayerRecord
from sinklens.detectors.attention_summary_verdict import describe_virtual
from sinklens.detectors.base import Detector, LayerSums, Metric, frame_of
from sinklens.detectors.registry import register
from sinklens.models.tokens import TokenBatch

ENTROPY = Metric(
    "entropy",
    1,
    "Entropy in nats of a query's attention over real keys, renormalised to sum to one (mass on a learned sink logit "
    "is not an outcome), averaged over all queries. Null: mean log of the number of visible keys.",
    "standard; null added here",
)
DISTANCE = Metric(
    "distance", 1, "Mean over queries of sum_j p_ij (i - j) in tokens, p renormalised over real keys.", "standard"
)
MISSING = Metric(
    "missing_mass",
    1,
    "Mean over queries of 1 - sum_j A_ij: the virtual-sink mass that a learned sink logit takes from the real keys.",
    "gpt-oss and softmax-off-by-one; see the engine",
)
GATE = Metric(
    "gate",
    1,
    "Mean over queries and channels of the sigmoid gate that multiplies a head's output: 1 passes everything, 0 "
    "lets the head stay silent without a sink. NaN in models without output gates.",
    "Qiu et al. 2025, gated attention; read from the query projection of Qwen3-Next and kin",
)

COLUMNS = {
    "entropy": "entropy",
    "entropy_null": "entropy_null",
    "distance": "distance",
    "mass_bos": "bos_mass",
    "mass_special": "special_mass",
    "missing_mass": "missing_mass",
    "gate": "gate",
}


@register
class AttentionSummaryDetector(Detector):
    """Over how many tokens each head spreads its attention, how far back they lie, and how much rests on the BOS.

    A low entropy means few tokens, a high distance far ones, a high ``missing_mass`` that much falls on no token.

    Table ``attention_summary``: one row per head with means over all real queries; NaN where a quantity is not
    applicable. In a census with sinks its columns stand in ``heads``.

    Cost: a few numbers per head.
    """

    name = "attention_summary"
    metrics = (ENTROPY, DISTANCE, MISSING, GATE)
    rank = 70

    def __init__(self) -> None:
        self._sums = LayerSums()

    def statistics(self, batch: TokenBatch) -> Sequence[StatisticFactory]:
        """Entropy, distance, mass on BOS and special tokens (where there are any), missing mass."""
        sets = {"special": batch.special, "bos": batch.bos}
        present = {name: members for name, members in sets.items() if bool(members.any())}
        return [Entropy, Distance, MissingMass, *([partial(KeySetMass, sets=present)] if present else [])]

    def update(self, record: LayerRecord) -> None:
        """Take one layer; layers without attention are left out."""
        if "entropy" not in record.attention:
            return
        heads = record.attention["entropy"].shape[1]
        for name in COLUMNS:
            value = record.attention.get(name)
            if value is None:
                continue
            value = value if value.ndim == 3 else value[:, None].expand(-1, heads, -1)
            seen = ~value.isnan()
            if name in ("mass_bos", "mass_special"):  # not applicable to a sequence without such a token
                members = record.batch.bos if name == "mass_bos" else record.batch.special
                seen &= members.any(1).to(seen.device)[:, None, None]
            total = value.where(seen, 0).double().sum((0, 2))
            self._sums.add(record.layer, name, torch.stack([total, seen.double().sum((0, 2))]))

    def merge(self, other: Self) -> None:
        """Add what another detector saw of other sequences."""
        self._sums.merge(other._sums)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The table."""
        parts = []
        for layer, sums in sorted(self._sums.layers.items()):
            heads = next(iter(sums.values())).shape[-1]
            part: dict[str, Any] = {"layer": layer, "head": np.arange(heads)}
            for name, column in COLUMNS.items():
                total, count = sums[name].numpy() if name in sums else np.full((2, heads), np.nan)
                part[column] = total / np.where(count > 0, count, np.nan)
            parts.append(part)
        return {"attention_summary": frame_of(parts, ("layer", "head", *COLUMNS.values()))}

    def verdict(self, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[str]:
        """What learned sink logits take and output gates pass."""
        return describe_virtual(tables["heads"]) if "heads" in tables else []
