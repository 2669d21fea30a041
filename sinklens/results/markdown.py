"""Tables as Markdown."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd


def markdown_table(frame: pd.DataFrame) -> str:
    """A table with three digits to each number, and n/a where there is none.

    >>> print(markdown_table(pd.DataFrame({"head": ["L0H1"], "alpha": [0.12345]})))
    | head | alpha |
    | --- | --- |
    | L0H1 | 0.123 |
    """
    return markdown_rows(map(str, frame.columns), (map(_cell, row) for row in frame.itertuples(index=False)))


def markdown_rows(head: Iterable[str], rows: Iterable[Iterable[str]], *, right: bool = False) -> str:
    """A table of texts as they stand; ``right`` puts all columns but the first at their right edge.

    >>> print(markdown_rows(["head", "score"], [["L0H1", "0.1"]], right=True))
    | head | score |
    | --- | ---: |
    | L0H1 | 0.1 |
    """
    names = list(head)
    rule = ["---", *["---:" if right else "---"] * (len(names) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (names, rule, *rows))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "n/a" if math.isnan(value) else f"{value:.3g}"
    return str(value)
