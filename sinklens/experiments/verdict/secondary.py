"""Secondary sinks in words."""

import pandas as pd

from sinklens.experiments.verdict.wording import row_at


def describe_secondary(table: pd.DataFrame) -> list[str]:
    """Only where there are some: most models and short texts have none."""
    found = table[table["label"] == "secondary"]
    if found.empty:
        return []
    top = row_at(found, found["importance_max"].idxmax())
    return [
        f"Secondary sinks: {len(found)} tokens in {found['sequence'].nunique()} sequences point along the BOS for part "
        f"of its life and are attended to; the strongest is {top.token!r} at position {top.position} of sequence "
        f"{top.sequence}, after blocks {top.first_layer} to {top.last_layer}, importance {top.importance_max:.2f}."
    ]
