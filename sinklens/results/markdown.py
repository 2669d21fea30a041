"""Tables as Markdown."""

import math
from typing import Any

import pandas as pd


def markdown_table(frame: pd.DataFrame) -> str:
    """A table with three digits to each number, and n/a where there is none.

    >>> print(markdown_table(pd.DataFrame({"head": ["L0H1"], "alpha": [0.12345]})))
    | head | alpha |
    | --- | --- |
    | L0H1 | 0.123 |
    """
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "n/a" if math.isnan(value) else f"{value:.3g}"
    return str(value)
