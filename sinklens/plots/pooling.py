"""Fewer cells for the browser: blocks of neighbours become one cell that keeps what stands out."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from sinklens.plots.style import token_label

MOST_TOKENS: Final = 1000
"""Figures with one column per token pool beyond this; a browser needs seconds for much more."""


def pooled(values: Any, cell: int, axes: tuple[int, ...] = (-1,)) -> "np.ndarray[Any, np.dtype[Any]]":
    """Replace every block of `cell` neighbours by its entry of largest magnitude, sign kept; the last may be shorter.

    NaN (masked) entries are passed over; a block of nothing else stays NaN.

    Args:
        values: Array of floats.
        cell: Neighbours per block.
        axes: Axes pooled.

    >>> pooled([[1.0, -3.0, float("nan"), 2.0, float("nan")]], 2).tolist()
    [[-3.0, 2.0, nan]]
    """
    out = np.asarray(values)
    for axis in axes if cell > 1 else ():
        moved = np.moveaxis(out, axis, -1)
        missing = -moved.shape[-1] % cell
        moved = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, missing)], constant_values=np.nan)
        blocks = moved.reshape(*moved.shape[:-1], -1, cell)
        size = np.where(np.isnan(blocks), -1, np.abs(blocks))
        best = np.take_along_axis(blocks, size.argmax(-1)[..., None], -1)[..., 0]
        out = np.moveaxis(best, -1, axis)
    return out


def span_label(tokens: Sequence[str], start: int, stop: int, *, most: int = 4) -> str:
    """Name a block of tokens in a hover: its positions and its first tokens; escaped.

    >>> span_label(["a", "b", "c"], 0, 3, most=2), span_label(["a", "b"], 1, 2)
    ('0-2 a b …', '1 b')
    """
    alone = stop - start == 1
    shown = " ".join(token_label(token, 24 if alone else 10) for token in tokens[start : min(stop, start + most)])
    return f"{start}{'' if alone else f'-{stop - 1}'} {shown}{' …' if stop - start > most else ''}"
