"""What sentences about tables need: a row by its label, names of heads and tokens, runs of layers, spans of numbers."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from sinklens.detectors.sink_ranking import ORDER, by_importance
from sinklens.wording import listed, run_words


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
    """Heads by name in the group's order, and how many more there are."""
    names = [name_of(row) for _, row in group.head(most).iterrows()]
    rest = len(group) - len(names)
    return ", ".join(names) + (f" and {rest} more" if rest > 0 else "")


def heads_at(frame: pd.DataFrame, column: str, value: float) -> str:
    """Every head that has exactly this value, by layer and head: an extreme that several share names them all."""
    return head_list(frame[frame[column] == value].sort_values(["layer", "head"]))


def strongest_of(heads: pd.DataFrame) -> pd.DataFrame:
    """The head with the highest importance, or all that equal it in rate and ratio too; NaN counts as nothing."""
    ordered = by_importance(heads)
    best = ordered.iloc[0]
    alike = [column for column in ORDER if column in ordered]
    return ordered[(ordered[alike] == best[alike]).all(axis=1)]


def layer_runs(layers: Iterable[int]) -> str:
    """Layers as runs: ``layer 3``, ``layers 10 and 11``, ``layers 0-9 and 12-29``.

    >>> layer_runs([12, 13, 14, 0, 1, 7])
    'layers 0, 1, 7 and 12-14'
    """
    parts = run_words(layers)
    alone = len(parts) == 1 and "-" not in parts[0]
    return f"layer{'' if alone else 's'} {listed(parts)}"


def span(values: pd.Series) -> str:
    """Smallest to largest of what is known."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"
