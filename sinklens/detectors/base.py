"""What all detectors share: the update / merge / compute protocol and results that turn into tables."""

from dataclasses import dataclass
from typing import Any, Protocol, Self

import pandas as pd
import torch
from torch import Tensor

from sinklens.capture.record import LayerRecord


@dataclass(frozen=True)
class Metric:
    """A versioned definition; it travels with every table that uses it. A changed formula bumps the version."""

    name: str
    version: int
    definition: str
    source: str

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"version": self.version, "definition": self.definition, "source": self.source}


class Result(Protocol):
    """A finished measurement."""

    def to_dataframe(self) -> pd.DataFrame:
        """Tidy table, one row per measured thing."""


class Detector(Protocol):
    """Accumulates layer records; ``merge`` joins what two of them saw of different sequences."""

    def update(self, record: LayerRecord) -> None:
        """Take one layer of one batch."""

    def merge(self, other: Self) -> None:
        """Add what another detector with the same settings saw."""

    def compute(self) -> Result:
        """The result so far."""


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
