"""Hold the emergence table against the papers' claims."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from sinklens.errors import InputError
from sinklens.lab.emergence.cell import Cell
from sinklens.lab.emergence.claims import CLAIMS, Claim, Outcome, Test
from sinklens.lab.emergence.table import interval, reach

Verdict = Literal["reproduced", "differs", "not reproduced", "not measured"]


def judge(cells: Iterable[Cell], claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Compare what the trained models show with what the papers say.

    "reproduced": every test holds in every seed. "not reproduced": the first test's opposite holds in every seed.
    "differs": anything between. "not measured": a condition is missing. Columns: source, statement, reported,
    measured (mean and 95 % interval over seeds of every test's value), test, verdict, seeds.

    Raises:
        InputError: if two cells are of one condition and seed.
    """
    by_key: dict[tuple[str, int], Cell] = {}
    for cell in cells:
        if by_key.setdefault((cell.condition, cell.seed), cell) is not cell:
            raise InputError(f"Two cells of {cell.condition!r} with seed {cell.seed} were given.")
    rows = []
    for claim in claims:
        values = [_values(test, by_key) for test in claim.tests]
        outcomes = [[test.outcome(v) for v in own] for test, own in zip(claim.tests, values, strict=True)]
        rows.append(
            {
                "source": claim.source,
                "statement": claim.statement,
                "reported": claim.reported,
                "measured": "; ".join(_show(test, own) for test, own in zip(claim.tests, values, strict=True)),
                "test": "; ".join(str(test) for test in claim.tests),
                "verdict": joint_verdict(outcomes),
                "seeds": min(len(own) for own in values),
            }
        )
    return pd.DataFrame(rows)


def _values(test: Test, cells: dict[tuple[str, int], Cell]) -> list[float]:
    values = []
    for (condition, seed), cell in sorted(cells.items()):
        other = None if test.against is None else cells.get((test.against, seed))
        if condition != test.condition or (test.against is not None and other is None):
            continue
        values.append(cell.figure(test.figure) / (1.0 if other is None else other.figure(test.figure)))
    return values


def joint_verdict(outcomes: Sequence[Sequence[Outcome]]) -> Verdict:
    """Join what a claim's tests gave, seed by seed (or at both ends of an interval); the first is the claim itself.

    Example:
        >>> joint_verdict([["yes", "yes"], ["yes", "partly"]]), joint_verdict([["no", "no"], ["yes", "yes"]])
        ('differs', 'not reproduced')
    """
    if not all(outcomes):
        return "not measured"
    if all(outcome == "yes" for own in outcomes for outcome in own):
        return "reproduced"
    return "not reproduced" if all(outcome == "no" for outcome in outcomes[0]) else "differs"


def _show(test: Test, values: list[float]) -> str:
    if not values:
        return "-"
    lowest, highest = reach(test.figure)
    highest = highest if test.against is None else math.inf
    mean, (low, high) = sum(values) / len(values), interval(np.array(values), lowest=lowest, highest=highest)
    return f"{mean:.3g}" if math.isnan(low) else f"{mean:.3g} [{low:.3g}, {high:.3g}]"
