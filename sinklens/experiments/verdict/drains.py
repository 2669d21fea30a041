"""Value-state drains in words."""

import pandas as pd

from sinklens.experiments.verdict.wording import name_of, row_at, span

DRAINED = 0.5


def describe_drains(heads: pd.DataFrame) -> list[str]:
    """How small the value state of the sink is in the sink heads."""
    if "drain" not in heads or not len(heads) or not heads["is_sink"].any():
        return []
    sinks = heads[heads["is_sink"]]
    measure, label = ("drain_wo", "|W_O v|") if sinks["drain_wo"].notna().all() else ("drain", "|v|")
    drained = sinks[sinks[measure] < DRAINED]
    size = span(sinks[measure])
    if drained.empty:
        return [f"No value-state drain: {label} of the sink is {size} times the other tokens' in the sink heads."]
    return [
        f"Value-state drain in {len(drained)} of {len(sinks)} sink heads: {label} of the sink is {size} times the "
        f"other tokens' (smallest in {name_of(row_at(sinks, sinks[measure].idxmin()))})."
    ]
