"""How a claim is judged: by the ends of the intervals, with the emergence table's rule."""

import math
from collections.abc import Mapping
from typing import Literal

from published.claim import PublishedClaim
from sinklens.evidence.bootstrap import Interval
from sinklens.lab.emergence.judge import joint_verdict

Verdict = Literal["reproduced", "differs", "not reproduced", "not testable here", "not measured"]
RULE = (
    "Every test has two bounds, one with which the claim holds and one with which its opposite does; they stand in the "
    "code beside the claim. *Reproduced*: every test holds at both ends of its 95 % interval. *Not reproduced*: the "
    "first test's opposite holds at both ends. *Differs*: anything between. Where there is no interval, the value is "
    "judged. A further test whose figure does not exist for a model (no such token in its texts) is left out. *Not "
    "testable here*: the model lacks what the claim is about, and the reason is given. *Not measured*: the model was "
    "not there, or the run was ended before. Bounds come from the papers' figures; some earlier figures of the two "
    "real models were known when they were set."
)


def verdict(claim: PublishedClaim, figures: Mapping[str, Interval]) -> Verdict:
    """Judge one claim on one model.

    Args:
        claim: The claim with its tests.
        figures: What was measured; nothing for "not testable here".
    """
    outcomes = []
    for number, test in enumerate(claim.tests):
        found = figures.get(test.figure)
        if found is None or math.isnan(found.value):
            if number == 0:
                return "not testable here"
            continue
        ends = [found.value] if math.isnan(found.low) else [found.low, found.high]
        outcomes.append([test.outcome(end) for end in ends])
    return joint_verdict(outcomes)
