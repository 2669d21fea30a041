"""A census' tables of heads and layers: what the detectors say about one head, side by side."""

import pandas as pd

from sinklens.detectors.sinks import SINK_HEAD_RATE, SINK_HEAD_RATIO

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
    return sinks.merge(visible, on=[*KEY, "position"], how="left")


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
    at_key = table[[*KEY, "position", "ceiling"]].rename(columns={"position": "sink_position"})
    heads = heads.merge(at_key, on=[*KEY, "sink_position"])
    own = strongest_visible.drop(columns="ceiling").rename(columns={"position": "sink_position_visible"})
    own = own.astype({"layer": int, "head": int, "sink_position_visible": "Int64"})
    heads = heads.merge(own, on=KEY, how="left")
    heads = heads.merge(summary, on=KEY, how="left")
    for suffix in ("", "_visible"):
        enough = heads[f"sink_rate{suffix}"] >= SINK_HEAD_RATE
        heads[f"is_sink{suffix}"] = enough & (heads[f"ratio{suffix}"] >= SINK_HEAD_RATIO)
    if drains is not None and len(drains):
        wanted = drains.rename(columns={"position": "sink_position"}).drop(columns="n_sequences")
        heads = heads.merge(wanted, on=[*KEY, "sink_position"], how="left")
    return heads


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
