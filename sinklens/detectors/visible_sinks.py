"""Attention sinks per query that can see the key: what windows leave of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.attention import ReceivedMass, StatisticFactory
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector, LayerSums, Metric, frame_of, narrow
from sinklens.detectors.registry import register
from sinklens.detectors.sinks import EPS, MIN_QUERIES, MIN_SHARE
from sinklens.detectors.visible_sinks_verdict import describe_windows
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch

METRIC = Metric(
    "sink_score_visible",
    1,
    "Attention to key k per query that can see it, in one head and sequence: beta_k = sum_i A_ik / n_k with n_k = "
    "#{i: i sees k} under the layer's mask. Without windows n_k = T-k and beta_k is alpha_k of sink_score. Rate, null "
    "and ratio as there. ceiling = n_k / (T-k), the largest alpha_k that any head of the layer can reach: alpha_k = "
    "ceiling * beta_k.",
    "sinklens, after Gu et al. 2025, arXiv 2410.10781",
)
COLUMNS = (
    "layer", "head", "position", "importance_visible", "sink_rate_visible", "null_visible", "ratio_visible", "ceiling",
)  # fmt: skip


def importance_visible(pattern: Any, visible: Any) -> Float[Tensor, "*batch head k_pos"]:
    """Mean attention to every key over the queries that see it.

    Args:
        pattern: Attention weights ``[..., head, q_pos, k_pos]``, 0 at masked keys.
        visible: Which keys each query sees, ``[..., q_pos, k_pos]``; rows of padding see nothing.

    Returns:
        ``[..., head, k_pos]``; NaN for a key that no query sees.

    Raises:
        InputError: Shapes that do not belong together.

    Example:
        Each token sees itself and the one before, and gives everything to the one before:

        >>> pattern = [[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]
        >>> importance_visible(pattern, [[1, 0, 0], [1, 1, 0], [0, 1, 1]])
        tensor([[1.0000, 0.5000, 0.0000]])
    """
    weights, seen = torch.as_tensor(pattern).float(), torch.as_tensor(visible).float()
    if weights.ndim < 3 or seen.ndim < 2 or weights.shape[-2:] != seen.shape[-2:]:
        raise InputError(
            f"Expected patterns [..., head, q_pos, k_pos] and visible keys [..., q_pos, k_pos], got "
            f"{tuple(weights.shape)} and {tuple(seen.shape)}."
        )
    return weights.sum(-2) / seen.sum(-2)[..., None, :]


@register
class VisibleSinkDetector(Detector):
    """How much attention each token gets from the tokens whose window shows it: near 1 where they look at it alone.

    Tables: ``sinks_visible``, one row per layer, head and position: means over the sequences that reach it.
    ``sink_heads_visible``, one row per head: its strongest key among those that at least ``min_queries`` queries see
    and an eighth of the sequence follows, in at least half of the sequences. A layer whose window is shorter than
    ``min_queries`` has none.

    Cost: O(heads pos) per layer.
    """

    name = "visible_sinks"
    metrics = (METRIC,)
    rank = 20

    def __init__(self, eps: float = EPS, min_queries: int = MIN_QUERIES, min_share: float = MIN_SHARE) -> None:
        self.eps, self.min_queries, self.min_share = eps, min_queries, min_share
        self._sums = LayerSums()

    def statistics(self, batch: TokenBatch) -> Sequence[StatisticFactory]:
        """Attention received, with the number of queries that see each key."""
        return [ReceivedMass]

    def update(self, record: LayerRecord) -> None:
        """Take one layer; layers without attention are not applicable and left out."""
        if "mass" not in record.attention:
            return
        mass, queries = record.attention["mass"], record.attention["queries"]
        reached = record.real.to(mass.device)
        lengths = record.batch.lengths.to(mass.device)[:, None]
        after = (lengths - torch.arange(reached.shape[1], device=mass.device)).clamp(min=1)
        queries = queries.masked_fill(~reached, 0)
        seen = queries.clamp(min=1)
        beta = (mass / seen[:, None]).masked_fill(~reached[:, None], 0)
        eligible = reached & (queries >= self.min_queries) & (after >= lengths * self.min_share)
        above = (beta > self.eps).double().masked_fill(beta.isnan(), torch.nan)
        sums = {
            "beta": beta.double().sum(0),
            "above": above.sum(0),
            "count": reached.double().sum(0),
            "null": (record.attention["null_mass"] / seen).masked_fill(~reached, 0).double().sum(0),
            "ceiling": (queries / after).double().sum(0),
            "eligible": eligible.double().sum(0),
            "eligible_beta": (beta * eligible[:, None]).double().sum(0),
            "sequences": torch.full((1,), float(len(record.batch))),
        }
        for name, value in sums.items():
            self._sums.add(record.layer, name, value)

    def merge(self, other: Self) -> None:
        """Add what a detector with the same settings saw of other sequences."""
        self.check_settings(other)
        self._sums.merge(other._sums)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Both tables; empty when no layer has attention."""
        tables, strongest = [], []
        for layer, sums in self._sums.arrays():
            table, found = _table(layer, sums)
            tables.append(narrow(table))
            strongest.append({name: values[found] for name, values in table.items()})
        return {
            "sinks_visible": frame_of(tables, COLUMNS, spend=True),
            "sink_heads_visible": frame_of(strongest, COLUMNS),
        }

    def verdict(self, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[str]:
        """What sliding windows do to the counts of sink heads."""
        return describe_windows(tables["heads"], settings) if "heads" in tables else []


def _table(layer: int, s: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns of a layer, and which of its rows are the heads' strongest keys."""
    heads, positions = s["beta"].shape
    count = np.where(s["count"] > 0, s["count"], np.nan)
    beta, null, ceiling = s["beta"] / count, s["null"] / count, s["ceiling"] / count
    head, position = np.divmod(np.arange(heads * positions), positions)
    table = {
        "layer": np.full(heads * positions, layer),
        "head": head,
        "position": position,
        "importance_visible": beta.ravel(),
        "sink_rate_visible": (s["above"] / count).ravel(),
        "null_visible": np.tile(null, heads),
        "ratio_visible": (beta / np.where(null > 0, null, np.nan)).ravel(),
        "ceiling": np.tile(ceiling, heads),
    }
    allowed = s["eligible"] >= max(1, s["sequences"][0] / 2)
    if not allowed.any():
        return table, np.zeros(0, dtype=int)
    with np.errstate(invalid="ignore"):
        score = np.where(allowed, s["eligible_beta"] / np.where(s["eligible"] > 0, s["eligible"], np.nan), -1)
    return table, np.arange(heads) * positions + score.argmax(1)
