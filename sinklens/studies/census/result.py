"""The census: every detector's tables of one run, their joins, and what they say in words."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd

from sinklens.detectors.sink_ranking import by_importance
from sinklens.errors import InputError, ResultError
from sinklens.results.result import Result
from sinklens.results.table import Table
from sinklens.studies.census.by_sequence import PREFIX, OneSequence, SequenceNumbers

FORMAT = "sinklens-census"
_ABSENT = {"domains": "its texts had no domains", "sinks_after": "it was made without an intervention"}
_TABLES = {"massive_activations": "massive", "residual_peaks": "residual_norms"}
"""Attributes that are called otherwise than their table."""


class NoTable(ResultError, AttributeError):
    """A table that a census does not have."""


@dataclass(frozen=True)
class AttentionMap:
    """The attention map of one head on the example sequence, for display.

    Attributes:
        layer: Layer index.
        head: Query head.
        values: ``[q_cell k_cell]`` fp32; NaN where the mask hides the cell.
        cell: 1 = one token per cell, else the maximum over ``cell x cell`` tokens.
        n_tokens: Length of the example sequence.
        tokens: Its token strings.
        why: Why this head is shown.
    """

    layer: int
    head: int
    values: np.ndarray
    cell: int
    n_tokens: int
    tokens: list[str]
    why: str

    @property
    def name(self) -> str:
        """``L5H1``."""
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True)
class Census(
    Result,
    format=FORMAT,
    title="Extreme-token census",
    newest=1,
    needs=("layers", "tokens", "profile"),
    header=("settings", "metrics", "maps", "map_tokens"),
):
    """Extreme tokens of one model on some texts: all tables with their definitions, tokens and settings.

    Attributes:
        meta: Model, tokens with BOS provenance, metric definitions and versions, settings, warnings, verdict.
        tables: All tables by name. Each is an attribute too: ``census.heads.to_dataframe()``. Among them: ``heads``
            (per head: strongest key, sink rate, drain, entropy, masses), ``sinks`` (per layer, head and key position),
            ``layers`` (per layer, -1 = embedding), ``tokens`` and ``token_types``; the detectors' docstrings say more.
        arrays: The cells of the :attr:`maps`, and what :meth:`sequence` reads.
    """

    @classmethod
    def of(
        cls,
        meta: Mapping[str, Any],
        tables: dict[str, pd.DataFrame],
        maps: Mapping[str, AttentionMap] | None = None,
        by_sequence: Mapping[str, np.ndarray] | None = None,
    ) -> Self:
        """Put a census together.

        Args:
            meta: Its header.
            tables: By name.
            maps: By name, e.g. ``"L0H3"``.
            by_sequence: Every head's numbers on each text, see :mod:`~sinklens.studies.census.by_sequence`.
        """
        maps = maps or {}
        facts = ("layer", "head", "cell", "n_tokens", "why")
        told = {
            "maps": {name: {fact: getattr(each, fact) for fact in facts} for name, each in maps.items()},
            "map_tokens": next((each.tokens for each in maps.values()), []),
        }
        cells = {name: each.values.astype(np.float32) for name, each in maps.items()}
        found = cls({**meta, **told}, tables, {**cells, **(by_sequence or {})})
        found.meta["by_sequence"] = {"kept": found.sequences.kept, "arrays": sorted(by_sequence or {})}
        return found

    @cached_property
    def maps(self) -> dict[str, AttentionMap]:
        """Attention maps of the most interesting heads by name, e.g. ``"L0H3"``."""
        described, tokens = self.meta.get("maps", {}), self.meta.get("map_tokens", [])
        return {
            name: AttentionMap(values=self.arrays[name], tokens=tokens, **facts)
            for name, facts in described.items()
            if name in self.arrays
        }

    @cached_property
    def sequences(self) -> SequenceNumbers:
        """Every head's numbers on each text; of a saved census they stay on disk until a text is asked for."""
        own = {name: values for name, values in self.arrays.items() if name.startswith(PREFIX)}
        return SequenceNumbers(own, self.tables["tokens"].groupby("sequence", sort=True).size().tolist())

    def sequence(self, sequence: int) -> OneSequence:
        """What every head did on one text.

        ::

            census.sequence(12).importance[6, 18, 8]  # attention that token 6 gets in L18H8, on text 12

        Raises:
            InputError: There is no such text.
            ResultError: Its numbers were not kept: an older census, or more texts than 128 MiB hold.
        """
        count = int(self.tables["tokens"]["sequence"].nunique())
        if not 0 <= sequence < count:
            raise InputError(f"This census has the texts 0 to {count - 1}, not {sequence}.")
        found = self.sequences.of(sequence)
        if found is None:
            raise ResultError(not_kept(sequence, self.sequences.kept, count))
        return found

    @classmethod
    def needed_arrays(cls, meta: Mapping[str, Any]) -> Collection[str]:
        """The cells of the maps, and every head's numbers on each text where there are some."""
        return [*meta["maps"], *(meta.get("by_sequence") or {}).get("arrays", ())]

    def __getattr__(self, name: str) -> Table:
        """One of the tables, those of detectors of your own included.

        Raises:
            ResultError: The census has none of this name; the sentence says with which detectors it was made.
        """
        if name.startswith("_") or "tables" not in self.__dict__:
            raise AttributeError(name)
        table = _TABLES.get(name, name)
        if table not in self.tables:
            chosen = ", ".join(self.meta["settings"]["detectors"])
            why = _ABSENT.get(table, f"it was made with the detectors {chosen}")
            raise NoTable(f"This census has no table {table!r}: {why}.")
        return Table(table, self.tables[table])

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.tables, *_TABLES})

    def short_tables(self) -> dict[str, pd.DataFrame]:
        """The strongest heads."""
        heads = self.tables.get("heads")
        return {} if heads is None or heads.empty else {"": strongest_heads(heads)}


def not_kept(sequence: int, kept: int, count: int) -> str:
    """Why a census has no numbers of a text by itself, in one sentence."""
    if not kept:
        return (
            "This census keeps means over its texts alone (it was made by an older sinklens, or without the detector "
            "sinks); scan again to see each text by itself."
        )
    return f"This census keeps the numbers of the texts 0 to {kept - 1} of {count} by themselves, not of {sequence}."


def strongest_heads(heads: pd.DataFrame, count: int = 10) -> pd.DataFrame:
    """The heads that give their strongest key the most attention, in a short table.

    Columns: strongest key, importance alpha, its causal-uniform null and their ratio, sink rate, norm of the key's
    value state over the others' before and after W_O, entropy in nats.
    """
    columns = {
        "sink_position": "key",
        "importance": "alpha",
        "null": "null",
        "ratio": "x null",
        "sink_rate": "rate",
        "drain": "|v|",
        "drain_wo": "|W_O v|",
        "entropy": "entropy",
    }
    top = by_importance(heads).head(count)
    out = pd.DataFrame({"head": [f"L{row.layer}H{row.head}" for row in top.itertuples()]})
    for column, title in columns.items():
        if column in top:
            out[title] = top[column].to_numpy()
    return out
