"""The table of sinks before and under interventions: beside each intervention, and in words."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from sinklens.wording import listed, several

COLUMNS: Final = (
    "intervention", "position", "n_sink_heads_before", "n_sink_heads", "n_heads", "importance_before", "importance",
)  # fmt: skip


def sink_columns(table: pd.DataFrame, interventions: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """For each intervention: sink heads before and after, and the position with most of them (``None`` without)."""
    out: dict[str, Mapping[str, Any]] = {}
    for name in interventions:
        rows = table[table["intervention"] == name]
        row: dict[str, Any] = {}
        for suffix in ("_before", ""):
            count = rows.set_index("position")[f"n_sink_heads{suffix}"].sort_index()
            row[f"n_sink_heads{suffix}"] = int(count.sum()) if len(rows) else None
            most = int(count.astype(int).to_numpy().argmax()) if len(rows) and count.sum() else None
            row[f"sink_position{suffix}"] = None if most is None else count.index.tolist()[most]
        out[name] = row
    return out


MOST = 4
"""Positions that are named; the rest is counted."""


def describe_sinks_after(table: pd.DataFrame) -> list[str]:
    """One sentence per intervention: sink heads by position before and after it, and what became of the sink."""
    out = []
    for name, rows in table.groupby("intervention", sort=False):
        before, after = _counts(rows, "n_sink_heads_before"), _counts(rows, "n_sink_heads")
        heads = int(rows["n_heads"].iloc[0])
        out.append(
            f"Under {name}: {before.sum()} of {several(heads, 'head')} sink before{_places(before)}, {after.sum()} "
            f"after{_places(after)}; {_fate(before, after)}."
        )
    return out


def _counts(rows: pd.DataFrame, column: str) -> pd.Series:
    """Sink heads by position, the most first."""
    ordered = rows[rows[column] > 0].sort_values([column, "position"], ascending=[False, True])
    return ordered.set_index("position")[column].astype(int)


def _places(counts: pd.Series) -> str:
    if counts.empty:
        return ""
    named = [f"position {position}: {count}" for position, count in counts.head(MOST).items()]
    rest = counts.iloc[MOST:]
    return f" ({', '.join(named)}{f', others: {rest.sum()}' if len(rest) else ''})"


def _fate(before: pd.Series, after: pd.Series) -> str:
    """By the positions that most sink heads have; several may share the first place."""
    if before.empty:
        return "there was no sink" if after.empty else "a sink has come up"
    if after.empty:
        return "no fixed position is a sink any more (of all later queries, those it hides the position from included)"
    old, new = (counts[counts == counts.max()].index.tolist() for counts in (before, after))
    if set(old) & set(new):
        return f"position {listed(str(each) for each in old if each in new)} still has the most"
    return f"the sink moved from position {listed(map(str, old))} to position {listed(map(str, new))}"
