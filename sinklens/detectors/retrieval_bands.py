"""From which score on a head counts as a retrieval head."""

import math

RETRIEVAL_HEAD, STRONG = 0.1, 0.5
"""From these scores on a head is a retrieval head, and a strong one (the paper's lines)."""

BANDS = ("0", "0-0.1", "0.1-0.5", ">=0.5")


def band(score: float) -> str | None:
    """The paper's band of a score; ``None`` for NaN.

    Example:
        >>> [band(score) for score in (0.0, 0.02, 0.1, 0.7, math.nan)]
        ['0', '0-0.1', '0.1-0.5', '>=0.5', None]
    """
    if math.isnan(score):
        return None
    return BANDS[(score > 0) + (score >= RETRIEVAL_HEAD) + (score >= STRONG)]
