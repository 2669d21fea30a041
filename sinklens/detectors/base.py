"""What all detectors share: the base class, definitions of metrics, and sums by layer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Self, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.attention import StatisticFactory
from sinklens.capture.heap import ROWS, give_back
from sinklens.capture.record import LayerRecord
from sinklens.detectors.metric import Metric as Metric
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch

SHARED: Final[Mapping[str, tuple[str, ...]]] = {"layers": ("layer",), "head_scores": ("layer", "head", "kv_head")}
"""Tables that several detectors give, by the columns that tell rows apart: their other columns are joined."""


LARGE: Final = 1 << 15
"""Numbers of one layer from which on sums take fewer than 64 bits where that loses nothing, and its rows 32."""
LONG: Final = 1 << 12
"""Positions from which on they do so, too."""


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
        needs: Fields of a record without which it cannot work (``"hidden"``, ``"keys"``, ``"outputs"``, ``"z"``,
            ``"halves"``): a model that cannot give one is refused.
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

    def forget(self) -> None:
        """Drop what was collected, when all tables are made; default: every :class:`LayerSums`."""
        for value in vars(self).values():
            if isinstance(value, LayerSums):
                value.layers.clear()

    def verdict(self, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[str]:
        """What the tables of a finished census say, in sentences; default: nothing.

        Args:
            tables: All tables of the census; those of detectors that did not run are missing.
            settings: Of the run, such as ``eps``.
        """
        return []


class LayerSums:
    """Named fp64 sums per layer that grow along the position axis when longer sequences arrive.

    Large ones take as few bytes as hold them: counts fit into 8 or 16 bits, and what a single text adds into fp32.
    """

    def __init__(self) -> None:
        self.layers: dict[int, dict[str, Tensor]] = {}

    def add(self, layer: int, name: str, value: Tensor) -> None:
        """Add ``value`` (last axis = position) to a sum, widening whichever is shorter."""
        value = value.detach().to(device="cpu", dtype=torch.float64)
        held = self.layers.setdefault(layer, {}).get(name)
        if held is not None:
            width = max(held.shape[-1], value.shape[-1])
            pad = torch.nn.functional.pad
            value = pad(held.double(), (0, width - held.shape[-1])) + pad(value, (0, width - value.shape[-1]))
        large = value.numel() >= LARGE or value.shape[-1] >= LONG
        self.layers[layer][name] = _short(value, rounded=held is None) if large else value.clone()

    def arrays(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Each layer with its sums by name, all in fp64."""
        for layer, sums in sorted(self.layers.items()):
            yield layer, {name: value.double().numpy() for name, value in sums.items()}

    def merge(self, other: "LayerSums") -> None:
        """Add all sums of another object."""
        for layer, sums in other.layers.items():
            for name, value in sums.items():
                self.add(layer, name, value)


def _short(value: Float[Tensor, "..."], *, rounded: bool) -> Float[Tensor, "..."]:
    """The same in the narrowest type that holds it exactly; ``rounded``: fp32 at most."""
    for kind in (torch.float8_e4m3fn, torch.float16, torch.float32):  # the first holds whole numbers to 16, and NaN
        narrow = value.to(kind)
        if (rounded and kind == torch.float32) or bool(((narrow.double() == value) | value.isnan()).all()):
            return narrow
    return value.clone()


def frame_of(parts: Sequence[Mapping[str, Any]], columns: Sequence[str] = (), *, spend: bool = False) -> pd.DataFrame:
    """One table from columns that were collected in parts: frames for every layer would take longer than the pass.

    Args:
        parts: Arrays of equal length by name, and single values that stand in every row of their part.
        columns: Names of a table without parts.
        spend: Take the arrays out of the parts, so that no second copy of a large table lies beside the first.
    """
    if not parts:
        return pd.DataFrame(columns=[*columns])
    lengths = [max(np.size(values) for values in part.values()) for part in parts]
    left: list[dict[str, Any]] = [cast(dict[str, Any], part) if spend else dict(part) for part in parts]
    found = {}
    for name in list(left[0]):
        pieces = [part.pop(name) for part in left]
        found[name] = np.concatenate(
            [each if np.ndim(each) else np.full(length, each) for each, length in zip(pieces, lengths, strict=True)]
        )
        del pieces
        if spend and sum(lengths) >= ROWS:
            give_back()  # or the parts of a large table stay resident beside it
    return pd.DataFrame(found, copy=False)


def narrow(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same in 32 bits where they are :data:`LARGE`: tables of every head and position can have millions of rows."""
    kinds: dict[str, Any] = {} if len(next(iter(columns.values()))) < LARGE else {"i": np.int32, "f": np.float32}
    return {name: values.astype(kinds.get(values.dtype.kind, values.dtype)) for name, values in columns.items()}


def medians(of: np.ndarray, values: np.ndarray, n_groups: int) -> np.ndarray:
    """Median of each group's known values, the mean of the middle two for an even count; NaN where none is known.

    Args:
        of: Number of each value's group.
        values: NaN where not known.
        n_groups: How many groups there are.
    """
    there = ~np.isnan(values)
    of, values = of[there], values[there]
    ordered, counts = values[np.lexsort((values, of))], np.bincount(of, minlength=n_groups)
    found, some = np.full(n_groups, np.nan), counts > 0
    first = (np.cumsum(counts) - counts)[some]
    low, high = first + (counts[some] - 1) // 2, first + counts[some] // 2
    found[some] = (ordered[low] + ordered[high]) / 2
    return found


def means(of: np.ndarray, values: np.ndarray, n_groups: int) -> np.ndarray:
    """Mean of each group's known values in fp64, NaN where none is known; arguments as for :func:`medians`."""
    there = ~np.isnan(values)
    sums = np.bincount(of[there], values[there], minlength=n_groups)
    counts = np.bincount(of[there], minlength=n_groups)
    found: np.ndarray = np.divide(sums, counts, out=np.full(n_groups, np.nan), where=counts > 0)
    return found
