"""A measured figure held against its bound."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple


class Gate(NamedTuple):
    """One measured figure beside the bound it must keep."""

    quantity: str
    value: float
    bound: str
    passed: bool

    @classmethod
    def of(
        cls, measured: Mapping[str, float], quantity: str, relation: Literal["<=", ">=", "<", ">"], bound: float
    ) -> "Gate":
        """Hold a figure against a bound; one that is missing or NaN fails.

        Example:
            >>> Gate.of({"loss": 0.2}, "loss", "<=", 0.05)
            Gate(quantity='loss', value=0.2, bound='<= 0.05', passed=False)
        """
        value = measured.get(quantity, math.nan)
        kept = {"<=": value <= bound, ">=": value >= bound, "<": value < bound, ">": value > bound}[relation]
        return cls(quantity, value, f"{relation} {bound:g}", kept)


def missed(rows: Iterable[Gate]) -> list[str]:
    """One sentence for each bound that is missed; an empty list means that all hold."""
    return [f"{row.quantity} is {row.value:.4g}, expected {row.bound}" for row in rows if not row.passed]
