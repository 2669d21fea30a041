"""Value-state drains in words."""

import pandas as pd

from sinklens.detectors.wording import heads_at, span
from sinklens.wording import several

DRAINED = 0.5
"""Share of the other tokens' norm below which the sink's value state counts as drained."""


def describe_drains(heads: pd.DataFrame, layers: pd.DataFrame) -> list[str]:
    """How small the value state of the sink is in the sink heads where it is measured."""
    if "drain" not in heads or not len(heads) or not heads["is_sink"].any():
        return []
    sinks = heads[heads["is_sink"].astype(bool)]
    measure, label = ("drain_wo", "|W_O v|") if sinks["drain_wo"].notna().any() else ("drain", "|v|")
    known = sinks[sinks[measure].notna()]
    if known.empty:
        return [f"Value-state drains could not be measured in any of the {several(len(sinks), 'sink head')}."]
    drained, measured = known[known[measure] < DRAINED], several(len(known), "sink head")
    if len(known) < len(sinks):
        measured += f"; not measured in {len(sinks) - len(known)} more"
    size = f"{label} of the sink is {span(known[measure])} times the other tokens' mean"
    smallest = f"smallest in {heads_at(known, measure, known[measure].min())}"
    if drained.empty:
        sentence = f"No value-state drain in {measured}: {size} ({smallest})."
    else:
        sentence = (
            f"Value-state drain in {len(drained)} of {measured} ({label} of the sink below {DRAINED} times the other "
            f"tokens' mean): over all {len(known)}, {size} ({smallest})."
        )
    if measure == "drain_wo" and "norm_after_attention" in layers and layers["norm_after_attention"].eq(True).any():
        sentence += (
            " This model normalises what attention writes, all heads together, before it reaches the residual stream: "
            "|W_O v| compares tokens within a head and is not what arrives there."
        )
    return [sentence]
