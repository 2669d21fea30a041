"""Value-state drains: sink tokens whose value states are far smaller than everyone else's."""

import math
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
from sinklens.detectors.value_drains_verdict import describe_drains
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch
from sinklens.wording import several

METRIC = Metric(
    "value_drain",
    1,
    "Mean over sequences of |v_k| divided by the mean over sequences of the average |v_j|, j != k, in the same head; "
    "before (per KV head) and after W_O (|W_O v| per query head). Below 1 the token says less than the others.",
    "Guo et al. 2024, arXiv 2410.13835; Gu et al. 2025, arXiv 2410.10781",
)

COLUMNS = (
    "layer", "head", "kv_head", "position", "value_norm", "drain", "output_norm", "drain_wo", "n_sequences",
)  # fmt: skip


def drain_ratio(norms: Any, position: int = 0) -> Float[Tensor, "*head"]:
    """Norm of one token's value state over the mean norm of the others.

    Args:
        norms: Value norms ``[..., pos]`` of one sequence per row.
        position: The token in question.

    Returns:
        ``|v_k| / mean_{j != k} |v_j|``; NaN for a single token or others that are all zero.

    Raises:
        InputError: The position does not exist.

    Example:
        >>> round(drain_ratio([0.5, 2.0, 3.0]).item(), 3)
        0.2
    """
    values = norms if isinstance(norms, Tensor) else torch.as_tensor(np.asarray(norms), dtype=torch.float32)
    length = values.shape[-1]
    if not -length <= position < length:
        raise InputError(f"There is no position {position} among {several(length, 'token')}.")
    values = values.double()  # the difference below would lose small norms beside a large one
    own = values[..., position]
    others = (values.sum(-1) - own) / max(1, length - 1)
    undefined = (others <= 0) | (length < 2)
    return torch.where(undefined, math.nan, own / others)


@register
class ValueDrainDetector(Detector):
    """How long each token's value state is beside the others': 1 as long, near 0 where attending to it adds nothing.

    Table ``value_drains``, one row per layer, query head and position: ``kv_head``, ``value_norm`` (mean ``|v|``),
    ``drain`` (before W_O), ``output_norm`` (mean ``|W_O v|``), ``drain_wo`` (after W_O), ``n_sequences``.

    Cost: O(heads pos) per layer.
    """

    name = "value_drains"
    metrics = (METRIC,)
    by_default = True
    rank = 30

    def __init__(self) -> None:
        self._sums = LayerSums()
        self._heads: dict[int, int] = {}

    def statistics(self, batch: TokenBatch) -> Sequence[StatisticFactory]:
        """Attention received, for the number of query heads where W_O cannot be read."""
        return [ReceivedMass]

    def update(self, record: LayerRecord) -> None:
        """Take one layer; layers without value states are left out."""
        if record.values is None:
            return
        real = record.real.to(record.values.value.device)
        kv_heads = record.values.value.shape[1]
        known = [record.values.output, record.attention.get("mass"), record.attention.get("entropy")]
        heads = next((t.shape[1] for t in known if t is not None), kv_heads)
        self._heads[record.layer] = max(heads, self._heads.get(record.layer, 0))
        self._sums.add(record.layer, "count", (real & (real.sum(1, keepdim=True) > 1)).double().sum(0))
        for name, norms in (("value", record.values.value), ("output", record.values.output)):
            if norms is None:
                continue
            norms = norms.double().masked_fill(~real[:, None], 0)
            others = (norms.sum(-1, keepdim=True) - norms) / (real.sum(1) - 1).clamp(min=1)[:, None, None]
            counted = (real & (real.sum(1, keepdim=True) > 1))[:, None]
            self._sums.add(record.layer, name, (norms * counted).sum(0))
            self._sums.add(record.layer, f"{name}_others", (others * counted).sum(0))

    def merge(self, other: Self) -> None:
        """Add what another detector saw of other sequences."""
        self._sums.merge(other._sums)
        for layer, heads in other._heads.items():
            self._heads[layer] = max(heads, self._heads.get(layer, 0))

    def tables(self) -> dict[str, pd.DataFrame]:
        """The table; ``output_norm`` and ``drain_wo`` are NaN where W_O cannot be read."""
        parts = []
        for layer, s in self._sums.arrays():
            kv_heads, positions = s["value"].shape
            heads = self._heads[layer]
            count = np.where(s["count"] > 0, s["count"], np.nan)
            head = np.repeat(np.arange(heads), positions)
            kv_head = head // (heads // kv_heads)
            unknown = np.full((heads, positions), np.nan)
            columns = {
                "layer": np.full(heads * positions, layer),
                "head": head,
                "kv_head": kv_head,
                "position": np.tile(np.arange(positions), heads),
                "value_norm": np.repeat(s["value"] / count, heads // kv_heads, axis=0).ravel(),
                "drain": np.repeat(_ratio(s, "value"), heads // kv_heads, axis=0).ravel(),
                "output_norm": (s["output"] / count if "output" in s else unknown).ravel(),
                "drain_wo": (_ratio(s, "output") if "output" in s else unknown).ravel(),
                "n_sequences": np.tile(s["count"].astype(int), heads),
            }
            parts.append(narrow(columns))
        return {"value_drains": frame_of(parts, COLUMNS, spend=True)}

    def verdict(self, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[str]:
        """How small the value state of the sink is in the sink heads."""
        return describe_drains(tables["heads"], tables["layers"]) if "heads" in tables else []


def _ratio(s: dict[str, np.ndarray], name: str) -> np.ndarray:
    others = s[f"{name}_others"]
    return s[name] / np.where(others > 0, others, np.nan)
