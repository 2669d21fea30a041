"""What a census keeps besides the detectors' tables: the example sequence and its maps."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from sinklens.attention import PooledMap, StatisticFactory
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import frame_of
from sinklens.detectors.sink_ranking import by_importance
from sinklens.detectors.sinks import SINK_HEAD_RATE, SINK_HEAD_RATIO, sequence_importance
from sinklens.models.tokens import TokenBatch
from sinklens.studies.census.result import AttentionMap


class Example:
    """Norms by layer and token, and all heads' pooled maps, of the first sequence.

    Args:
        with_maps: Whether the maps are taken.
    """

    def __init__(self, with_maps: bool = False) -> None:
        self.with_maps = with_maps
        self.parts: list[dict[str, Any]] = []
        self.maps: dict[tuple[int, int], np.ndarray] = {}
        self.cell = 1

    def statistics(self, batch: TokenBatch) -> Sequence[StatisticFactory]:
        """The maps of the first sequence, in the first pass."""
        return [partial(PooledMap, sequences=(0,))] if self.with_maps and not self.parts else []

    def update(self, record: LayerRecord) -> None:
        """Keep the first sequence of the first batch."""
        if record.first_sequence != 0:
            return
        length = int(record.batch.lengths[0])
        residual, values = record.residual, record.values
        after = None if values is None else values.output
        received = sequence_importance(record)[0][0, :, :length].mean(0) if "mass" in record.attention else None
        columns = {
            "resid_norm": None if residual is None else residual.norm[0, :length],
            "value_norm": None if values is None else values.value[0, :, :length].mean(0),
            "wo_value_norm": None if after is None else after[0, :, :length].mean(0),
            "received": received,
        }
        nothing = np.full(length, np.nan)
        self.parts.append(
            {
                "layer": record.layer,
                "position": np.arange(length),
                "token": np.array(record.batch.tokens[0], dtype=object),
                **{name: nothing if column is None else column.cpu().numpy() for name, column in columns.items()},
            }
        )
        pooled = record.attention.get("pooled_map")
        if pooled is not None:
            self.cell = 1
            while -(-record.real.shape[1] // self.cell) > pooled.shape[-1]:
                self.cell *= 2
            cells = -(-length // self.cell)
            for head in range(pooled.shape[1]):
                self.maps[record.layer, head] = pooled[0, head, :cells, :cells].cpu().numpy()

    def profile(self) -> pd.DataFrame:
        """``layer, position, token, resid_norm, value_norm, wo_value_norm, received``."""
        return frame_of(self.parts)


def choose_maps(example: Example, heads: pd.DataFrame | None, batch: TokenBatch, count: int) -> dict[str, AttentionMap]:
    """Attention maps of the strongest sink heads, then of the most focused others."""
    if heads is None or heads.empty or not example.maps:
        return {}
    sinks = by_importance(heads[heads["is_sink"]]).head(math.ceil(count / 2))
    focused = heads[~heads["is_sink"]].sort_values(["entropy", "layer", "head"]).head(count)
    chosen: dict[tuple[int, int], str] = {}
    for _, row in sinks.iterrows():
        why = f"importance {row['importance']:.2f} at position {row['sink_position']}, sink rate {row['sink_rate']:.2f}"
        chosen[int(row["layer"]), int(row["head"])] = why
    for index in [*range((count + 1) // 2), *range(len(focused))]:
        if len(chosen) >= count or index >= len(focused):
            continue
        row = focused.iloc[index]
        why = f"no sink; entropy {row['entropy']:.2f} of at most {row['entropy_null']:.2f} nats"
        chosen.setdefault((int(row["layer"]), int(row["head"])), why)
    length = int(batch.lengths[0])
    out = {}
    for (layer, head), why in chosen.items():
        values = example.maps[layer, head]
        out[f"L{layer}H{head}"] = AttentionMap(layer, head, values, example.cell, length, list(batch.tokens[0]), why)
    return out


KEY = ["layer", "head"]
EMPTY = (
    *KEY, "sink_position", "sink_rate", "importance", "null", "ratio", "is_sink", "importance_first", "null_first",
    "sink_rate_first", "sink_position_visible", "importance_visible", "sink_rate_visible", "null_visible",
    "ratio_visible", "is_sink_visible", "ceiling", "ceiling_first", "missing_mass", "gate",
)  # fmt: skip
"""Columns that the table of a model without attention has as well."""


def join_tables(found: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """What the detectors found, with ``sinks`` and ``heads`` in place of the parts that these two are joined of."""
    tables = dict(found)
    if "sinks" not in tables:
        return tables
    own, own_heads = tables.pop("sinks_visible"), tables.pop("sink_heads_visible")
    tables["sinks"] = join_sinks(tables["sinks"], own)
    tables["heads"] = join_heads(
        tables["sinks"],
        tables.pop("sink_heads"),
        own_heads,
        tables.pop("attention_summary"),
        tables.get("value_drains"),
    )
    return tables


def join_sinks(sinks: pd.DataFrame, visible: pd.DataFrame) -> pd.DataFrame:
    """One row per layer, head and position: importance over all later queries, and over those that see the key."""
    if sinks.empty:
        return pd.DataFrame(columns=list(dict.fromkeys([*sinks.columns, *visible.columns])))
    key = [*KEY, "position"]
    if len(sinks) == len(visible) and all((sinks[name].to_numpy() == visible[name].to_numpy()).all() for name in key):
        return pd.concat([sinks, visible.drop(columns=key)], axis=1)  # as a rule row by row: nothing to look up
    return sinks.merge(visible, on=key, how="left")


def join_heads(
    table: pd.DataFrame,
    strongest: pd.DataFrame,
    strongest_visible: pd.DataFrame,
    summary: pd.DataFrame,
    drains: pd.DataFrame | None,
) -> pd.DataFrame:
    """One row per head: strongest key, its score and null, its drain, and how the head attends.

    Columns that end in ``_visible`` belong to the key that is strongest per query that sees it
    (``sink_position_visible``); ``ceiling`` is the largest importance that any head of the layer can give
    ``sink_position``, and ``ceiling_first`` the same for position 0.
    """
    if strongest.empty:
        return pd.DataFrame(columns=[*EMPTY])
    heads = strongest.rename(columns={"position": "sink_position"}).drop(columns="n_sequences")
    first = table[table["position"] == 0].rename(
        columns={
            "importance": "importance_first",
            "sink_rate": "sink_rate_first",
            "null": "null_first",
            "ceiling": "ceiling_first",
        }
    )
    heads = heads.merge(first[[*KEY, "importance_first", "sink_rate_first", "null_first", "ceiling_first"]], on=KEY)
    at_key = _at(table, heads)[[*KEY, "position", "ceiling"]].rename(columns={"position": "sink_position"})
    heads = heads.merge(at_key, on=[*KEY, "sink_position"])
    own = strongest_visible.drop(columns="ceiling").rename(columns={"position": "sink_position_visible"})
    own = own.astype({"layer": int, "head": int, "sink_position_visible": "Int64"})
    heads = heads.merge(own, on=KEY, how="left")
    heads = heads.merge(summary, on=KEY, how="left")
    for suffix in ("", "_visible"):
        enough = heads[f"sink_rate{suffix}"] >= SINK_HEAD_RATE
        heads[f"is_sink{suffix}"] = enough & (heads[f"ratio{suffix}"] >= SINK_HEAD_RATIO)
    if drains is not None and len(drains):
        wanted = _at(drains, heads).rename(columns={"position": "sink_position"}).drop(columns="n_sequences")
        heads = heads.merge(wanted, on=[*KEY, "sink_position"], how="left")
    return _wide(heads)


def _at(table: pd.DataFrame, heads: pd.DataFrame) -> pd.DataFrame:
    """The rows at positions that are some head's strongest: a join would look all of them up."""
    return table[table["position"].isin(heads["sink_position"])]


def _wide(heads: pd.DataFrame) -> pd.DataFrame:
    """Joined columns as wide as the others: the tables of every position are narrow to save memory."""
    wide = {"float32": "float64", "int32": "int64"}
    return heads.astype({name: wide[str(kind)] for name, kind in heads.dtypes.items() if str(kind) in wide})


def sinks_by_layer(heads: pd.DataFrame) -> pd.DataFrame:
    """One row per layer with attention: sink rate at position 0, its ceiling, and the number of sink heads."""
    grouped = heads.groupby("layer")
    return pd.DataFrame(
        {
            "sink_rate_first": grouped["sink_rate_first"].mean(),
            "ceiling_first": grouped["ceiling_first"].mean(),
            "n_sink_heads": grouped["is_sink"].sum(),
            "n_sink_heads_visible": grouped["is_sink_visible"].sum(),
        }
    ).reset_index()
