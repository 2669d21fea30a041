"""How well estimated effects rank heads, measured on heads whose exact effect is known."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 2000
MIN_HEADS = 5


@dataclass(frozen=True)
class RankAgreement:
    """Spearman's rank correlation of estimated and exact effects.

    Attributes:
        rho: The correlation; NaN for fewer than three heads or where all effects are equal.
        low: Lower end of the 95 % percentile bootstrap interval over heads; NaN for fewer than 5 heads.
        high: Upper end.
        n: Number of heads.
    """

    rho: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """``0.93 [0.78, 0.99] on 16 heads``."""
        if math.isnan(self.rho):
            return f"not applicable on {self.n} head{'s' * (self.n != 1)} (it needs three, and effects that differ)"
        rho = f"{self.rho:.2f}"
        interval = "no interval" if math.isnan(self.low) else f"[{self.low:.2f}, {self.high:.2f}]"
        return f"{rho} {interval} on {self.n} heads"


def rank_agreement(estimated: np.ndarray, exact: np.ndarray, *, seed: int = 0) -> RankAgreement:
    """Compare two orders of the same heads; heads where either is NaN are left out.

    Args:
        estimated: Effect of each head, estimated.
        exact: The same, exact.
        seed: Of the bootstrap.

    >>> rank_agreement(np.array([1.0, 2, 3, 4, 5, 6]), np.array([2.0, 3, 5, 7, 11, 13])).rho
    1.0
    """
    known = ~(np.isnan(estimated) | np.isnan(exact))
    x, y = estimated[known], exact[known]
    n = len(x)
    rho = float(_spearman(x[None], y[None])[0]) if n > 2 else math.nan
    if n < MIN_HEADS or math.isnan(rho):
        return RankAgreement(rho, math.nan, math.nan, n)
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    low, high = np.nanquantile(_spearman(x[drawn], y[drawn]), (0.025, 0.975))
    return RankAgreement(rho, float(low), float(high), n)


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Row by row; NaN where a row is constant."""
    x, y = rankdata(x, axis=1), rankdata(y, axis=1)
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    spread = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    rho: np.ndarray = np.divide((x * y).sum(1), spread, out=np.full(len(x), math.nan), where=spread > 0)
    return rho.clip(-1, 1)
