"""What all sentences need: a row by its label, names of heads and tokens, spans of numbers."""

from typing import Any

import numpy as np
import pandas as pd


def row_at(frame: pd.DataFrame, label: Any) -> Any:
    """One row, untyped: its fields are read by name."""
    return frame.loc[label]


def token_at(tokens: pd.DataFrame, position: int) -> str:
    """The token that stands there, if it is the same in every sequence."""
    there = tokens[tokens["position"] == position]
    names = there["token"].unique()
    if len(names) != 1:
        return ""
    kind = ", the BOS" if there["is_bos"].all() else ""
    return f" ({names[0]!r}{kind})"


def name_of(row: Any) -> str:
    """L5H1 of a row with a layer and a head."""
    return f"L{int(row['layer'])}H{int(row['head'])}"


def head_list(group: pd.DataFrame, most: int = 6) -> str:
    """The strongest heads of a group by name, and how many more there are."""
    ordered = group.sort_values(["sink_rate", "importance"], ascending=False)
    names = [name_of(row) for _, row in ordered.head(most).iterrows()]
    rest = len(group) - len(names)
    return ", ".join(names) + (f" and {rest} more" if rest > 0 else "")


def span(values: pd.Series) -> str:
    """Smallest to largest."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"
