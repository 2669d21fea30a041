"""Every head's numbers on each text by itself: what a census keeps besides its means over the texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd

PREFIX: Final = "by_sequence."
"""Before the names of these arrays among those of a census."""

BY_TOKEN: Final = ("importance", "null", "value_norm", "output_norm", "resid_norm", "top_key", "top_weight")
BY_HEAD: Final = ("entropy", "distance")
NO_KEY: Final = np.iinfo(np.uint32).max
"""In place of a top key where a token reads nothing, or its layer has no attention."""


@dataclass(frozen=True)
class OneSequence:
    """What every head did on one text: fp32 views ``[pos layer head]``, NaN where a layer has no such number.

    Attributes:
        importance: ``alpha_k``, mean attention that token k gets from itself and the tokens after it.
        null: The same under uniform attention, ``[pos layer]``.
        value_norm: ``|v|``, ``[pos layer kv_head]``.
        output_norm: ``|W_O v|``.
        resid_norm: Norm of the residual stream, ``[pos 1+layer]``; entry 0 is the embedding.
        top_key: The key that each token reads most (an integer, :data:`NO_KEY` for none); ``None`` where not kept.
        top_weight: The attention it gets from that token; ``None`` where not kept.
        entropy: Mean over the queries, nats, ``[layer head]``.
        distance: Mean over the queries, tokens, ``[layer head]``.
    """

    importance: np.ndarray
    null: np.ndarray
    value_norm: np.ndarray | None
    output_norm: np.ndarray | None
    resid_norm: np.ndarray | None
    top_key: np.ndarray | None
    top_weight: np.ndarray | None
    entropy: np.ndarray | None
    distance: np.ndarray | None

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return len(self.importance)

    def heads(
        self, settings: Mapping[str, Any], special: np.ndarray | None = None, bos: np.ndarray | None = None
    ) -> pd.DataFrame:
        """One row per head with the columns of a census's table ``heads``, of this text alone.

        ``sink_rate`` is 1 where the strongest key's importance exceeds ``eps`` and 0 elsewhere. The strongest key is
        chosen among those that enough tokens follow, as in a census (:class:`~sinklens.detectors.sinks.SinkDetector`).

        Args:
            settings: Those of the census: ``eps``, ``min_queries``, ``min_share``, ``sink_head_ratio``.
            special: Which tokens are special; for ``special_mass``.
            bos: Which token is the BOS; for ``bos_mass``.
        """
        length, layers, heads = self.importance.shape
        queries = length - np.arange(length)
        eligible = queries >= max(settings.get("min_queries", 10), length * settings.get("min_share", 0.125))
        alpha = np.where(eligible[:, None, None], np.asarray(self.importance, dtype=np.float64), -1.0)
        best = np.where(np.isnan(alpha), -1.0, alpha).argmax(0)  # [layer head]
        layer, head = (each.ravel() for each in np.indices((layers, heads)))
        key = best.ravel()
        columns: dict[str, Any] = {"layer": layer, "head": head, "sink_position": key}
        columns["importance"] = self._at(self.importance, key, layer, head)
        columns["null"] = np.asarray(self.null, dtype=np.float64)[key, layer]
        columns["importance_first"] = self._at(self.importance, 0, layer, head)
        columns["null_first"] = np.asarray(self.null, dtype=np.float64)[0, layer]
        for suffix in ("", "_first"):
            own = columns[f"importance{suffix}"]
            columns[f"sink_rate{suffix}"] = np.where(np.isnan(own), np.nan, own > settings["eps"])
        with np.errstate(divide="ignore", invalid="ignore"):
            columns["ratio"] = columns["importance"] / np.where(columns["null"] > 0, columns["null"], np.nan)
        columns["is_sink"] = (columns["sink_rate"] == 1) & (columns["ratio"] >= settings.get("sink_head_ratio", 2.0))
        for name, members in (("bos_mass", bos), ("special_mass", special)):
            if members is not None and members.any():
                mass = np.asarray(self.importance, dtype=np.float64) * queries[:, None, None]
                columns[name] = (mass[members].sum(0) / length)[layer, head]
        for name, values in (("entropy", self.entropy), ("distance", self.distance)):
            if values is not None:
                columns[name] = np.asarray(values, dtype=np.float64)[layer, head]
        if self.value_norm is not None:
            columns["kv_head"] = head // max(1, heads // self.value_norm.shape[2])
            columns["value_norm"] = self._at(self.value_norm, key, layer, columns["kv_head"])
            columns["drain"] = self._drain(self.value_norm, key, layer, columns["kv_head"])
        if self.output_norm is not None:
            columns["output_norm"] = self._at(self.output_norm, key, layer, head)
            columns["drain_wo"] = self._drain(self.output_norm, key, layer, head)
        table = pd.DataFrame(columns)
        return table[table["importance"].notna()].reset_index(drop=True)

    def _at(self, values: np.ndarray, key: Any, layer: np.ndarray, head: np.ndarray) -> np.ndarray:
        return np.asarray(values[key, layer, head], dtype=np.float64)

    def _drain(self, norms: np.ndarray, key: np.ndarray, layer: np.ndarray, head: np.ndarray) -> np.ndarray:
        own = self._at(norms, key, layer, head)
        total = np.asarray(norms, dtype=np.float64).sum(0)[layer, head]
        others = (total - own) / max(1, self.length - 1)
        return own / np.where((others > 0) & (self.length > 1), others, np.nan)


class SequenceNumbers:
    """The numbers of all texts that a census kept, read where they lie when a text is asked for.

    Args:
        arrays: Those of the census; the ones with :data:`PREFIX` are used.
        lengths: Tokens of every text.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], lengths: Sequence[int]) -> None:
        self._arrays = {name.removeprefix(PREFIX): each for name, each in arrays.items() if name.startswith(PREFIX)}
        self._ends = np.cumsum([0, *lengths])

    @cached_property
    def kept(self) -> int:
        """How many texts, the first ones."""
        if "importance" not in self._arrays:
            return 0
        return int(np.searchsorted(self._ends, len(self._arrays["importance"]), side="right")) - 1

    def of(self, sequence: int) -> OneSequence | None:
        """One text; ``None`` where it was not kept."""
        if not 0 <= sequence < self.kept:
            return None
        span = slice(int(self._ends[sequence]), int(self._ends[sequence + 1]))
        found: dict[str, Any] = {name: self._part(name, span) for name in BY_TOKEN}
        found |= {name: self._part(name, sequence) for name in BY_HEAD}
        return OneSequence(**found)

    def _part(self, name: str, where: Any) -> np.ndarray | None:
        return self._arrays[name][where] if name in self._arrays else None
