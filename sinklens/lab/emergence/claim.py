"""A statement of a paper about how sinks emerge, and the bounds with which it holds."""

import math
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["yes", "partly", "no"]


@dataclass(frozen=True)
class Test:
    """One bound on one figure of one condition, or on its ratio to another condition's at the same seed.

    Attributes:
        condition: row of the table.
        figure: figure of that row.
        relation: ">=" or "<=".
        holds: the bound with which the claim holds.
        fails: the bound beyond which the opposite holds; between the two it holds partly. ``holds`` if None.
        against: divide by this condition's figure.
    """

    __test__ = False  # no test of pytest's

    condition: str
    figure: str
    relation: Literal[">=", "<="]
    holds: float
    fails: float | None = None
    against: str | None = None

    def outcome(self, value: float) -> Outcome:
        """Judge one seed; NaN is "no".

        Example:
            >>> [Test("relu", "mass_first_bigram", "<=", 0.1, fails=0.5).outcome(v) for v in (0.1, 0.3, 0.5)]
            ['yes', 'partly', 'no']
        """
        sign = 1 if self.relation == ">=" else -1
        if sign * value >= sign * self.holds:
            return "yes"
        fails = self.holds if self.fails is None else self.fails
        between = math.isfinite(value) and self.fails is not None and sign * value > sign * fails
        return "partly" if between else "no"

    def __str__(self) -> str:
        against = f" / {self.against}" if self.against else ""
        return f"{self.condition}{against}: {self.figure} {self.relation} {self.holds:g}"


@dataclass(frozen=True)
class Claim:
    """A statement of a paper and the tests it has to pass here.

    Attributes:
        source: paper.
        statement: what it says.
        reported: its own figures, mostly of far larger models.
        tests: the first is the claim itself, the others belong to it.
    """

    source: str
    statement: str
    reported: str
    tests: tuple[Test, ...]
