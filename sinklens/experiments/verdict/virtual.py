"""Learned sinks and output gates in words."""

import pandas as pd

from sinklens.experiments.verdict.wording import name_of, row_at


def describe_virtual(heads: pd.DataFrame) -> list[str]:
    """What learned sink logits take, and what output gates pass."""
    out = []
    if len(heads) and (heads["missing_mass"] > 0.01).any():
        top = row_at(heads, heads["missing_mass"].idxmax())
        out.append(
            f"Virtual sink: learned sink logits take {heads['missing_mass'].mean():.2f} of the attention on "
            f"average, at most {top.missing_mass:.2f} ({name_of(top)}); that mass reaches no key and is not in the "
            "sink rates."
        )
    if len(heads) and heads["gate"].notna().any():
        low = row_at(heads, heads["gate"].idxmin())
        out.append(
            f"Output gates pass {heads['gate'].mean():.2f} of the heads' output on average, least in {name_of(low)} "
            f"({low.gate:.2f})."
        )
    return out
