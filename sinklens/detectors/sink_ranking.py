"""The one order of sink heads: by how much attention their key receives."""

import pandas as pd

EPS = 0.3
"""Attention from which a key is a sink; it stands here so that what reads results loads no torch for it."""

ORDER = ("importance", "sink_rate", "ratio")


def by_importance(heads: pd.DataFrame) -> pd.DataFrame:
    """Heads with the most attention on their strongest key first.

    A sink rate saturates: on real models a hundred heads share the rate 1.00, and an order by rate would name
    whichever of them comes first in the table. Importance does not. Equal importance is settled by rate, then by the
    ratio to the null, then by layer and head, so the order of the rows never matters; NaN comes last.

    Args:
        heads: Rows with ``layer``, ``head``, ``importance`` and, where known, ``sink_rate`` and ``ratio``.

    Returns:
        The same rows, sorted.

    Example:
        >>> heads = pd.DataFrame({"layer": [3, 18], "head": [4, 8], "importance": [0.69, 0.995], "sink_rate": 1.0})
        >>> by_importance(heads)["layer"].tolist()
        [18, 3]
    """
    scores = [column for column in ORDER if column in heads]
    directions = [False] * len(scores) + [True, True]
    return heads.sort_values([*scores, "layer", "head"], ascending=directions, kind="stable")
