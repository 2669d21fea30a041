"""What all detectors share: the base class, definitions of metrics, and sums by layer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sinklens.attention import StatisticFactory
from sinklens.capture.record import LayerRecord
from sinklens.detectors.metric import Metric as Metric
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch

SHARED: Final[Mapping[str, tuple[str, ...]]] = {"layers": ("layer",), "head_scores": ("layer", "head", "kv_head")}
"""Tables that several detectors give, by the columns that tell rows apart: their other columns are joined."""


class Detector(ABC):
    """One phenomenon, collected layer by layer during a forward pass; the base of all detectors, yours included.

    A subclass says what it reads, takes each record and gives tables::

        class KeyNormPeak(Detector):
            name = "key_norm_peak"
            needs = ("keys",)

            def __init__(self) -> None:
                self.rows: list[dict[str, float]] = []

            def update(self, record):
                if record.keys is not None:
                    norms = record.keys.norm(dim=-1).masked_fill(~record.real[:, None], 0)
                    self.rows.append({"layer": record.layer, "key_norm": norms.max().item()})

            def tables(self):
                return {"key_norms": pd.DataFrame(self.rows).groupby("layer", as_index=False).max()}


        sinklens.scan(model, texts, detectors=[KeyNormPeak(), "sinks"]).tables["key_norms"]

    Attributes:
        name: What it is asked for by.
        metrics: Definitions of what its tables hold.
        needs: Fields of a record without which it cannot work (``"hidden"``, ``"keys"``, ``"outputs"``, ``"halves"``):
            a model that cannot give one is refused.
        wants: Fields that it uses where the model has them.
        beside: Names of detectors that a scan runs with it, because a table of the census joins what they find.
        by_default: Whether a scan runs it without being asked.
        rank: Where its sentences and tables come among those of the others, smallest first.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    wants: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()
    by_default: ClassVar[bool] = False
    rank: ClassVar[int] = 100

    def statistics(self, batch: TokenBatch) -> Sequence[StatisticFactory]:
        """The statistics of attention that it reads in ``record.attention``; default: none.

        Args:
            batch: The sequences of the coming pass.
        """
        return []

    @abstractmethod
    def update(self, record: LayerRecord) -> None:
        """Take one layer of one batch."""

    def merge(self, other: Self) -> None:
        """Add what another detector with the same settings saw of other sequences.

        Raises:
            InputError: The settings differ, or this detector has no merge of its own.
        """
        raise InputError(f"{type(self).__name__} defines no merge(): measure all sequences with one of them.")

    def check_settings(self, other: Self) -> None:
        """Refuse to merge with a detector whose settings, the attributes without an underscore, are others.

        Raises:
            InputError: Naming the first that differs.
        """
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            if not name.startswith("_") and mine != theirs:
                raise InputError(
                    f"Two detectors {self.name!r} with different {name} cannot be merged: {mine!r} and {theirs!r}."
                )

    @abstractmethod
    def tables(self) -> dict[str, pd.DataFrame]:
        """What was found so far, by the names that the tables have in a result.

        Two tables are shared: ``"layers"`` has one row per ``layer``, ``"head_scores"`` one per ``layer``, ``head`` and
        ``kv_head``; their other columns are joined with those of the other detectors.
        """

    def verdict(self, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[str]:
        """What the tables of a finished census say, in sentences; default: nothing.

        Args:
            tables: All tables of the census; those of detectors that did not run are missing.
            settings: Of the run, such as ``eps``.
        """
        return []


class LayerSums:
    """Named fp64 sums per layer that grow along the position axis when longer sequences arrive."""

    def __init__(self) -> None:
        self.layers: dict[int, dict[str, Tensor]] = {}

    def add(self, layer: int, name: str, value: Tensor) -> None:
        """Add ``value`` (last axis = position) to a sum, widening whichever is shorter."""
        value = value.detach().to(device="cpu", dtype=torch.float64)
        held = self.layers.setdefault(layer, {}).get(name)
        if held is None:
            self.layers[layer][name] = value.clone()
            return
        width = max(held.shape[-1], value.shape[-1])
        pad = torch.nn.functional.pad
        self.layers[layer][name] = pad(held, (0, width - held.shape[-1])) + pad(value, (0, width - value.shape[-1]))

    def merge(self, other: "LayerSums") -> None:
        """Add all sums of another object."""
        for layer, sums in other.layers.items():
            for name, value in sums.items():
                self.add(layer, name, value)


def frame_of(parts: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> pd.DataFrame:
    """One table from columns that were collected in parts: frames for every layer would take longer than the pass.

    Args:
        parts: Arrays of equal length by name, and single values that stand in every row of their part.
        columns: Names of a table without parts.
    """
    if not parts:
        return pd.DataFrame(columns=[*columns])
    lengths = [max(np.size(values) for values in part.values()) for part in parts]
    return pd.DataFrame(
        {
            name: np.concatenate(
                [
                    part[name] if np.ndim(part[name]) else np.full(length, part[name])
                    for part, length in zip(parts, lengths, strict=True)
                ]
            )
            for name in parts[0]
        }
    )
