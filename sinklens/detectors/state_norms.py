"""Norms of keys, values and residual states: one position (the sink) against the other tokens."""

import math
from typing import Any, Self

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector, LayerSums, Metric
from sinklens.detectors.registry import register
from sinklens.errors import InputError

METRIC = Metric(
    "state_norm_ratio",
    1,
    "Mean over sequences of |x_p| divided by the mean over sequences of the average |x_j|, j != p, for the residual "
    "state after a layer (hidden), and for the keys (as attention uses them: after rotation and norms) and values of "
    "each KV head. 1 = position p is like the others.",
    "Gu et al. 2025, arXiv 2410.10781, section 3.1 (norms of the first token against the mean of the others)",
)

STATES = ("hidden", "key", "value")
COLUMNS = ("layer", "state", "kv_head", "norm", "others", "ratio", "n_sequences")


@register
class StateNormDetector(Detector):
    """How long the vectors of one token (the sink) are beside the other tokens': 1 as long, 10 ten times as long.

    Table ``state_norms``, one row per layer and state: ``state`` ("hidden", "key", "value"), ``kv_head`` (missing for
    hidden), ``norm`` at the position, ``others`` (mean norm elsewhere), ``ratio``, ``n_sequences``. Layer -1 is the
    embedding's output. What a layer does not have (keys without attention, or where only the bridge's hooks measure it)
    has no row.

    Args:
        position: The position held against the others; shorter sequences, and sequences of one token, are left out.

    Raises:
        InputError: A negative position.

    Cost: O(kv_heads) numbers per layer.
    """

    name = "state_norms"
    metrics = (METRIC,)
    wants = ("keys",)
    by_default = True

    def __init__(self, position: int = 0) -> None:
        if position < 0:
            raise InputError(f"Positions count from 0; got {position}.")
        self.position = position
        self._sums = LayerSums()

    def update(self, record: LayerRecord) -> None:
        """Take one layer of one batch."""
        found: dict[str, Tensor] = {}
        if record.residual is not None:
            found["hidden"] = record.residual.norm[:, None]
        if record.values is not None:
            found["value"] = record.values.value
        if record.keys is not None:
            found["key"] = torch.linalg.vector_norm(record.keys.float(), dim=-1)
        for state, norms in found.items():
            own, others, count = against_others(norms, record.real.to(norms.device), self.position)
            for name, value in (("own", own), ("others", others), ("count", count)):
                self._sums.add(record.layer, f"{state} {name}", value)

    def merge(self, other: Self) -> None:
        """Add what another detector of the same position saw of other sequences."""
        self.check_settings(other)
        self._sums.merge(other._sums)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The table, in the order of layers.

        Raises:
            InputError: No sequence reaches the position and has another token.
        """
        rows: list[tuple[Any, ...]] = []
        for layer, sums in sorted(self._sums.layers.items()):
            for state in STATES:
                if f"{state} own" not in sums:
                    continue
                count = int(sums[f"{state} count"].item())
                if not count:
                    raise InputError(f"No sequence has position {self.position} and another token to hold it against.")
                own, others = (sums[f"{state} {name}"].numpy() / count for name in ("own", "others"))
                for index, (norm, rest) in enumerate(zip(own.tolist(), others.tolist(), strict=True)):
                    kv_head = pd.NA if state == "hidden" else index
                    rows.append((layer, state, kv_head, norm, rest, norm / rest if rest > 0 else math.nan, count))
        return {"state_norms": pd.DataFrame(rows, columns=[*COLUMNS]).astype({"kv_head": "Int64"})}


def against_others(
    norms: Float[Tensor, "batch kv_head pos"], real: Bool[Tensor, "batch pos"], position: int
) -> tuple[Float[Tensor, " kv_head"], Float[Tensor, " kv_head"], Float[Tensor, "1"]]:
    """Sums over sequences of the norm at ``position`` and of the others' mean norm, and the number of sequences.

    Example:
        >>> norms = torch.tensor([[[6.0, 1.0, 3.0]]])
        >>> [float(x) for x in against_others(norms, torch.ones(1, 3, dtype=torch.bool), 0)]
        [6.0, 2.0, 1.0]
    """
    if position >= norms.shape[-1]:
        return norms.new_zeros(norms.shape[1]), norms.new_zeros(norms.shape[1]), norms.new_zeros(1)
    counted = real[:, position] & (real.sum(1) > 1)
    others = real.clone()
    others[:, position] = False
    filled = norms.double().nan_to_num()
    mean = (filled * others[:, None]).sum(-1) / others.sum(1).clamp(min=1)[:, None]
    return filled[counted, :, position].sum(0), mean[counted].sum(0), counted.double().sum(0, keepdim=True)
