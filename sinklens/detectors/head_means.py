"""Scores of heads that are means over queries, kept apart by sequence so that their spread is known."""

import math
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector

NULL = "_null"
SPREAD = "_sd"


class HeadMeans:
    """Sums of per-query quantities by layer, head and sequence.

    NaN is "not applicable" and counts nowhere. A name that ends in ``_null`` (what uniform attention would score) is a
    reference and has no spread of its own.

    Args:
        names: The quantities, for a table without rows.

    Cost: two numbers per head, quantity and sequence.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = names
        self._parts: dict[int, list[tuple[int, int, dict[str, Tensor]]]] = {}

    def add(
        self,
        record: LayerRecord,
        values: Mapping[str, Float[Tensor, "batch #head q_pos"]],
        queries: Bool[Tensor, "batch q_pos"] | None = None,
    ) -> None:
        """Add one layer of one batch.

        Args:
            record: Where the values come from.
            values: Quantities by name; one without a head axis of its own (size 1) holds for all heads.
            queries: True at queries that count; default: all real ones.
        """
        rows = record.real if queries is None else queries & record.real
        heads = max(value.shape[1] for value in values.values())
        sums = {}
        for name, value in values.items():
            value = value.detach().to(device="cpu", dtype=torch.float64).expand(-1, heads, -1)
            seen = rows.cpu()[:, None] & ~value.isnan()
            sums[name] = torch.stack([value.where(seen, 0).sum(-1), seen.double().sum(-1)])
        self._keep(record, sums)

    def add_sequences(self, record: LayerRecord, values: Mapping[str, Float[Tensor, "batch #head"]]) -> None:
        """Add what is one number per head and sequence; each sequence then counts once."""
        heads = max(value.shape[1] for value in values.values())
        sums = {}
        for name, value in values.items():
            value = value.detach().to(device="cpu", dtype=torch.float64).expand(-1, heads)
            sums[name] = torch.stack([value.nan_to_num(), (~value.isnan()).double()])
        self._keep(record, sums)

    def _keep(self, record: LayerRecord, sums: dict[str, Tensor]) -> None:
        heads = next(iter(sums.values())).shape[-1]
        kv_heads = heads if record.values is None else record.values.value.shape[1]
        self._parts.setdefault(record.layer, []).append((record.first_sequence, kv_heads, sums))

    def merge(self, other: Self) -> None:
        """Add what another object saw of other sequences."""
        for layer, parts in other._parts.items():
            self._parts.setdefault(layer, []).extend(parts)

    def table(self) -> pd.DataFrame:
        """One row per head: ``layer, head, kv_head``, each name's mean over all queries, spread and sequences.

        ``<name>_sd`` is the standard deviation between the sequences' means (NaN with fewer than two) and
        ``<name>_n`` the number of sequences that have a value; references have neither.
        """
        frames = []
        for layer, parts in sorted(self._parts.items()):
            ordered = [sums for _, _, sums in sorted(parts, key=lambda part: part[0])]
            kv_heads = parts[0][1]
            heads = next(iter(ordered[0].values())).shape[-1]
            head = np.arange(heads)
            frame = pd.DataFrame({"layer": layer, "head": head, "kv_head": head * kv_heads // heads})
            for name in ordered[0]:
                total, count = torch.cat([sums[name] for sums in ordered], 1)  # [sequence head] each
                frame[name] = _ratio(total.sum(0), count.sum(0)).numpy()
                if name.endswith(NULL):
                    continue
                means, n = _ratio(total, count), (count > 0).sum(0)
                centred = (means - means.nanmean(0)).nan_to_num()
                spread = (centred.square().sum(0) / (n - 1).clamp(min=1)).sqrt()
                frame[name + SPREAD] = spread.masked_fill(n < 2, math.nan).numpy()
                frame[f"{name}_n"] = n.numpy()
            frames.append(frame)
        if frames:
            return pd.concat(frames, ignore_index=True)
        ends = [("",) if name.endswith(NULL) else ("", SPREAD, "_n") for name in self._names]
        columns = [name + end for name, each in zip(self._names, ends, strict=True) for end in each]
        return pd.DataFrame(columns=["layer", "head", "kv_head", *columns])


class HeadMeansDetector(Detector):
    """Base of the detectors that score heads by means over queries; their columns meet in the table ``head_scores``.

    One row per head: ``layer, head, kv_head`` and for each score its mean over all queries, ``<score>_null`` (what
    uniform attention would score) where it has one, ``<score>_sd`` over sequences and ``<score>_n``, their number.

    Args:
        names: What :meth:`update` adds; default: the detector's name and its null.
    """

    def __init__(self, *names: str) -> None:
        self._means = HeadMeans(names or (self.name, self.name + NULL))

    def merge(self, other: Self) -> None:
        """Add what another detector with the same settings saw of other sequences."""
        self.check_settings(other)
        self._means.merge(other._means)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The table ``head_scores``."""
        return {"head_scores": self._means.table()}


def visible_keys(record: LayerRecord) -> Float[Tensor, "batch q_pos"] | None:
    """How many keys each query sees, from the null of its entropy; ``None`` where that was not measured."""
    null = record.attention.get("entropy_null")
    return None if null is None else null.double().exp().round()


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    return (total / count).masked_fill(count == 0, math.nan)
