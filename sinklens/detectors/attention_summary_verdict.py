"""Learned sinks and output gates in words."""

import pandas as pd

from sinklens.detectors.wording import heads_at

TAKEN = 0.01
"""Missing mass of a head from which a learned sink is worth a sentence."""


def describe_virtual(heads: pd.DataFrame) -> list[str]:
    """What learned sink logits take, and what output gates pass; means over the heads where it is known."""
    out = []
    if len(heads) and (heads["missing_mass"] > TAKEN).any():
        missing = heads["missing_mass"]
        out.append(
            f"Virtual sink: learned sink logits take {missing.mean():.2f} of the attention on average, at most "
            f"{missing.max():.2f} ({heads_at(heads, 'missing_mass', missing.max())}); that mass reaches no key and is "
            "not in the sink rates."
        )
    if len(heads) and heads["gate"].notna().any():
        gate = heads["gate"]
        out.append(
            f"Output gates pass {gate.mean():.2f} of the heads' output on average, least in "
            f"{heads_at(heads, 'gate', gate.min())} ({gate.min():.2f})."
        )
    return out
