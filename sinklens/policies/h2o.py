"""H2O: a cache of heavy hitters and recent tokens."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sinklens.policies.scan import HeavyHitters


@dataclass(frozen=True)
class H2O(HeavyHitters):
    """Keeps the keys that got the most attention so far, and the most recent ones; what is dropped is gone.

    After each step, if the cache holds more than ``heavy + recent`` keys, the one with the least attention summed over
    all rows since it came, among those older than ``recent``, is dropped with its sum. Per head.

    This is the online rule (``H2OKVCache_LayerWise`` of the released code). The lm-eval path of the same repository
    sums over rows that come later: see :class:`H2OGlobal`.

    Args:
        heavy: Heavy hitters.
        recent: Most recent tokens, the query's own included.
    """

    name: ClassVar[str] = "h2o"
    source: ClassVar[str] = "Zhang et al. 2023, arXiv 2306.14048; FMInference/H2O, utils_real_drop"

    def update(
        self, score: Float[Tensor, "head slot"], weights: Float[Tensor, "head slot"], position: int
    ) -> Float[Tensor, "head slot"]:
        """Attention adds up."""
        return score + weights

    @classmethod
    def sized(cls, keys: int, length: int) -> "H2O":
        """Half and half, with room for the query itself."""
        return cls(max(1, (keys - 1) // 2), max(1, keys - 1 - (keys - 1) // 2))
