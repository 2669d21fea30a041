"""Which half of which layer writes an entry of the residual stream, and which one cancels it; needs no torch."""

import math
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

PARTS: Final = ("attention", "mlp")


class Step(NamedTuple):
    """The half of a layer that changes an entry most in one direction.

    Attributes:
        layer: Layer index.
        part: "attention" or "mlp".
        value: What it adds, signed.
        share: ``value`` over the entry's largest value: 1 means it writes all of it, -1 that it cancels all.
    """

    layer: int
    part: str
    value: float
    share: float


def steps(entry: pd.DataFrame) -> tuple[Step | None, Step | None]:
    """Which half-layer writes an entry, and which one cancels it.

    With ``p`` the layer after which ``|after|`` is largest and ``s`` its sign there: the writer is the largest
    ``s * contribution`` up to layer ``p``, the canceller the most negative one after ``p``. ``None`` where there is
    none, such as a canceller of an entry that is largest after the last layer.

    Args:
        entry: One row per layer with ``layer, attention, mlp, after`` (means over sequences, if there were several).

    Returns:
        ``(writer, canceller)``.

    Example:
        >>> table = pd.DataFrame({"layer": [0, 1, 2], "attention": [0.0, 1.0, 0.5], "mlp": [90.0, 9.0, -80.0]})
        >>> writer, canceller = steps(table.assign(after=[90.0, 100.0, 20.5]))
        >>> writer[:3], canceller[:3]
        ((0, 'mlp', 90.0), (2, 'mlp', -80.0))
    """
    ordered = entry.sort_values("layer")
    after = ordered["after"].to_numpy(dtype=float)
    if not len(after) or not np.nanmax(np.abs(after)):
        return None, None
    peak = int(np.nanargmax(np.abs(after)))
    found = [
        Step(int(layer), part, float(value), float(value) / float(after[peak]))
        for part in PARTS
        for layer, value in zip(ordered["layer"], ordered[part], strict=True)
        if not math.isnan(value)
    ]
    last = int(ordered["layer"].iloc[peak])
    writer = max((step for step in found if step.layer <= last and step.share > 0), key=_share, default=None)
    canceller = min((step for step in found if step.layer > last and step.share < 0), key=_share, default=None)
    return writer, canceller


def _share(step: Step) -> float:
    return step.share
