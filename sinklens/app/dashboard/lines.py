"""What the lines from token to token are drawn of: whole rows where there are some, else each token's strongest key."""

from typing import Any, Final

import numpy as np

from sinklens.app.dashboard.census_run import CensusRun
from sinklens.plots.style import visible_text
from sinklens.studies.census.by_sequence import NO_KEY

LONGEST: Final = 4096
_FAINT: Final = 5e-4
"""Weights below it are not sent: their lines could not be seen."""


def lines_of(run: CensusRun, sequence: int, head: tuple[int, int]) -> dict[str, Any]:
    """Tokens and weighted lines of one head on one text.

    Returns:
        ``tokens`` as shown; ``lines``: ``[query, key, weight]`` each; ``kind``: ``"map"`` where all weights are known,
        ``"top"`` where each token's strongest key alone is, ``"none"``; ``exact``: tokens whose whole row and column
        are among the lines of a text of which the rest is not known; ``note``: all this in words.
    """
    tokens = [visible_text(token) for token in run.token_strings(sequence)[:LONGEST]]
    kept = run.map(sequence, *head)
    told = {"tokens": tokens, "head": f"L{head[0]}H{head[1]}", "exact": []}
    if kept is not None and kept.cell == 1:
        note = "Lines show every weight: click a query to see its keys, or a key to see who looks at it."
        return told | {"lines": _of_rows(kept.values, 0, 0), "kind": "map", "note": note}
    lines = _strongest(run, sequence, head)
    exact = []
    for (text, layer, index, (q0, q1, k0, k1)), values in run.windows.items():
        if (text, layer, index) == (sequence, *head) and 1 in (q1 - q0, k1 - k0):
            exact.append(q0 if q1 - q0 == 1 else k0)
            lines = [line for line in lines if not (q0 <= line[0] < q1 and k0 <= line[1] < k1)]
            lines += _of_rows(values, q0, k0)
    if not lines:
        note = "No map of this head on this text is kept, nor each token's strongest key: there are no lines."
        return told | {"lines": [], "kind": "none", "note": note}
    note = "Each token's line goes to its strongest key alone; a map, or exact rows, show the others."
    if exact:
        note += f" All weights are known for token {', '.join(map(str, sorted({*exact})))}."
    return told | {"lines": lines, "kind": "top", "exact": sorted({*exact}), "note": note}


def _of_rows(values: np.ndarray, first_query: int, first_key: int) -> list[list[float]]:
    query, key = np.nonzero(np.nan_to_num(values) >= _FAINT)
    weights = np.round(values[query, key].astype(float), 4)
    columns = (query + first_query, key + first_key, weights)
    return [list(line) for line in zip(*(each.tolist() for each in columns), strict=True)]


def _strongest(run: CensusRun, sequence: int, head: tuple[int, int]) -> list[list[float]]:
    one = run.text(sequence)
    if one is None or one.top_key is None or one.top_weight is None or head[0] >= one.top_key.shape[1]:
        return []
    key, weight = (np.asarray(each[:LONGEST, head[0], head[1]]) for each in (one.top_key, one.top_weight))
    known = np.flatnonzero((key != NO_KEY) & np.isfinite(weight))
    return [[int(at), int(key[at]), round(float(weight[at]), 4)] for at in known]
