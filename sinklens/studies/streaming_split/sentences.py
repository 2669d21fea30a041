"""What learned gates and the check of a split show, in sentences."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sinklens.studies.streaming_split.split import kv_name
from sinklens.wording import several

WHOLE = 0.5
"""Gate from which a KV head counts as one that needs its whole cache."""


def gates(table: pd.DataFrame, losses: pd.DataFrame) -> list[str]:
    """How many KV heads need the whole past, which one most and which least, and how the loss fell.

    Args:
        table: layer, kv_head, alpha.
        losses: One row per step.
    """
    if table.empty:
        return ["No KV head has a gate: no layer of this model has softmax attention."]
    ends = [table.loc[table["alpha"] == value] for value in (table["alpha"].max(), table["alpha"].min())]
    most, least = (_named(rows) for rows in ends)
    found = [
        f"{int((table['alpha'] >= WHOLE).sum())} of {several(len(table), 'KV head')} have a gate of at least {WHOLE}: "
        f"they need their whole cache; the highest is that of {most}, the lowest that of {least}."
    ]
    if len(losses):
        first, last = losses.iloc[0], losses.iloc[-1]
        found.append(
            f"The loss went from {first['loss']:.3g} to {last['loss']:.3g} in {several(len(losses), 'step')}; "
            f"{last['distillation']:.3g} of it is the distance from full attention."
        )
    return found


def check(conditions: pd.DataFrame) -> list[str]:
    """What is left of the answers under the split, beside its controls.

    Args:
        conditions: One row for each, ``full`` among them.
    """
    rows = {str(row["condition"]): row for row in conditions.to_dict("records")}
    full = rows["full"]
    found = [f"With full attention everywhere {full['exact_match']:.0%} of the questions are answered exactly."]
    if "split" in rows:
        row = rows["split"]
        kept = f"{several(int(row['n_retrieval_kv']), 'KV head')} of {int(full['n_retrieval_kv'])}"
        found.insert(
            0,
            f"With full attention in {kept} and {row['kv_kept']:.0%} of the cache, {_answered(row)} are answered "
            f"exactly ({_change(row)} against full attention everywhere).",
        )
    random = [row["exact_match"] for name, row in rows.items() if name.startswith("random ")]
    if random:
        beaten = sum(value < rows["split"]["exact_match"] for value in random)
        mean, sets = sum(random) / len(random), several(len(random), "set")
        found.append(
            f"As many random KV heads answer {mean:.0%} in the mean of {sets}, {min(random):.0%} to {max(random):.0%}; "
            f"the split is better than {beaten} of them."
        )
    for name, what in (("split, compensated", "a compensation token besides"), ("streaming", "streaming everywhere")):
        if name in rows:
            found.append(f"With {what} {_answered(rows[name])} are answered exactly ({_change(rows[name])}).")
    return found


def _named(rows: pd.DataFrame) -> str:
    first: Any = rows.iloc[0]
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f"{kv_name((int(first['layer']), int(first['kv_head'])))}{more} ({first['alpha']:.2f})"


def _answered(row: Mapping[Any, Any]) -> str:
    return f"{row['exact_match']:.0%} of the questions"


def _change(row: Mapping[Any, Any]) -> str:
    low, high = row["delta_exact_match_low"], row["delta_exact_match_high"]
    span = "" if low != low else f" [{100 * low:+z.0f}, {100 * high:+z.0f}]"
    return f"{100 * row['delta_exact_match']:+z.0f}{span} points"
