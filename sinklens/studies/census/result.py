"""The census: every detector's tables of one run, their joins, and what they say in words."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd

from sinklens.detectors.sink_ranking import by_importance
from sinklens.errors import ResultError
from sinklens.results.result import Result
from sinklens.results.table import Table

FORMAT = "sinklens-census"
_ABSENT = {"domains": "its texts had no domains", "sinks_after": "it was made without an intervention"}


@dataclass(frozen=True)
class AttentionMap:
    """The attention map of one head on the example sequence, for display.

    Attributes:
        layer: Block index.
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
        tables: All tables by name; the properties below wrap them.
        arrays: The cells of the :attr:`maps`.
    """

    @classmethod
    def of(
        cls, meta: Mapping[str, Any], tables: dict[str, pd.DataFrame], maps: Mapping[str, AttentionMap] | None = None
    ) -> Self:
        """Put a census together.

        Args:
            meta: Its header.
            tables: By name.
            maps: By name, e.g. ``"L0H3"``.
        """
        maps = maps or {}
        facts = ("layer", "head", "cell", "n_tokens", "why")
        told = {
            "maps": {name: {fact: getattr(each, fact) for fact in facts} for name, each in maps.items()},
            "map_tokens": next((each.tokens for each in maps.values()), []),
        }
        return cls({**meta, **told}, tables, {name: each.values.astype(np.float32) for name, each in maps.items()})

    @cached_property
    def maps(self) -> dict[str, AttentionMap]:
        """Attention maps of the most interesting heads by name, e.g. ``"L0H3"``."""
        described, tokens = self.meta.get("maps", {}), self.meta.get("map_tokens", [])
        return {
            name: AttentionMap(values=self.arrays[name], tokens=tokens, **facts)
            for name, facts in described.items()
            if name in self.arrays
        }

    @classmethod
    def needed_arrays(cls, meta: Mapping[str, Any]) -> Collection[str]:
        """The cells of the maps."""
        return [*meta["maps"]]

    def _table(self, name: str) -> Table:
        if name not in self.tables:
            chosen = ", ".join(self.meta["settings"]["detectors"])
            why = _ABSENT.get(name, f"it was made with the detectors {chosen}")
            raise ResultError(f"This census has no table {name!r}: {why}.")
        return Table(name, self.tables[name])

    @property
    def sinks(self) -> Table:
        """Per layer, head and key position: importance, sink_rate, null, ratio."""
        return self._table("sinks")

    @property
    def heads(self) -> Table:
        """Per head: strongest key, sink rate, drain, entropy, masses."""
        return self._table("heads")

    @property
    def layers(self) -> Table:
        """Per layer (-1 = embedding): sink rate, residual norms, largest entries."""
        return self._table("layers")

    @property
    def tokens(self) -> Table:
        """Per token: for how many heads it is a sink, whether it is massive or special."""
        return self._table("tokens")

    @property
    def token_types(self) -> Table:
        """Sinks, massive activations and drains by token string and class, first or later in the sequence."""
        return self._table("token_types")

    @property
    def value_drains(self) -> Table:
        """Per layer, head and position: value norms and drain ratios before and after W_O."""
        return self._table("value_drains")

    @property
    def massive_activations(self) -> Table:
        """Largest residual entries per sequence and layer."""
        return self._table("massive")

    @property
    def massive_episodes(self) -> Table:
        """When each massive channel lives: runs of blocks, number of sequences, size, token-specific or everywhere."""
        return self._table("massive_episodes")

    @property
    def massive_channels(self) -> Table:
        """All massive entries counted per layer, criterion, place (position 0, others) and channel."""
        return self._table("massive_channels")

    @property
    def residual_peaks(self) -> Table:
        """Residual norm by layer and position."""
        return self._table("residual_norms")

    @property
    def peaks(self) -> Table:
        """Which tokens stand out by residual norm, per layer and position, and in how many sequences."""
        return self._table("peaks")

    @property
    def domains(self) -> Table:
        """Per head and domain: importance, sink rate and mass of position 0, and how they differ between domains."""
        return self._table("domains")

    @property
    def sinks_after(self) -> Table:
        """Sink heads by position before and under the intervention (of a scan with one)."""
        return self._table("sinks_after")

    @property
    def secondary_sinks(self) -> Table:
        """Tokens that point along the BOS in some layers: creation layer, lifetime, attention received, label."""
        return self._table("secondary_sinks")

    @property
    def decorrelation(self) -> Table:
        """Per layer: how much the other tokens' residual states point along position 0's."""
        return self._table("decorrelation")

    @property
    def compression(self) -> Table:
        """Per layer: matrix entropy and anisotropy with and without row 0 (made on request)."""
        return self._table("compression")

    def short_tables(self) -> dict[str, pd.DataFrame]:
        """The strongest heads."""
        heads = self.tables.get("heads")
        return {} if heads is None or heads.empty else {"": strongest_heads(heads)}


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
