"""How the effects of interventions are called, and what every figure of a sweep asks of its summary table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import pandas as pd

from sinklens.errors import InputError
from sinklens.plots.style import number

VARIANT: Final = ("intervention", "variant", "kind", "k", "draw", "layer", "head", "exact", "control_of")
"""Columns that tell the rows of a summary apart."""

EffectMetric = Literal["delta_loss", "kl", "top1_agreement", "delta_logit_diff"]


@dataclass(frozen=True)
class Effect:
    """How one effect is titled and coloured.

    Attributes:
        column: In the tables.
        title: Of a figure, without the intervention.
        short: In a hover text or a table head.
        unit: At the axis or colour bar, with the unit.
        note: What the number is, one sentence.
        scale: "signed" is a change that no effect leaves at 0; "positive" starts at 0; "share" runs from 0 to 1.
    """

    column: EffectMetric
    title: str
    short: str
    unit: str
    note: str
    scale: Literal["signed", "positive", "share"]

    @property
    def signed(self) -> bool:
        """Whether 0 means no effect and both sides are possible."""
        return self.scale == "signed"


EFFECTS: Final[dict[str, Effect]] = {
    "delta_loss": Effect(
        "delta_loss",
        "Change of the loss",
        "Δ loss, nats",
        "Δ loss (nats per token)",
        "Mean over sequences of the paired difference; above 0 = worse.",
        "signed",
    ),
    "kl": Effect(
        "kl",
        "KL divergence from the clean model",
        "KL, nats",
        "KL (nats per token)",
        "KL(clean || changed), mean over positions and sequences; 0 = the same predictions.",
        "positive",
    ),
    "top1_agreement": Effect(
        "top1_agreement",
        "Agreement with the clean model's first choice",
        "top-1 agreement",
        "agreement (share)",
        "Share of positions with the same most likely token; 1 = all of them.",
        "share",
    ),
    "delta_logit_diff": Effect(
        "delta_logit_diff",
        "Change of the logit difference",
        "Δ logit difference",
        "Δ logit difference (logits)",
        "Correct minus wrong answer, mean over sequences of the paired difference; below 0 = worse.",
        "signed",
    ),
}


def choose_intervention(rows: pd.DataFrame, intervention: str | None) -> tuple[pd.DataFrame, str]:
    """The rows of one intervention, and its label.

    Raises:
        InputError: There is no such intervention, or there are several and none was chosen.
    """
    present = sorted(map(str, rows["intervention"].dropna().unique()))
    if intervention is None and len(present) == 1:
        return rows, present[0]
    if intervention is None or intervention not in present:
        asked = "" if intervention is None else f", not {intervention!r}"
        raise InputError(f"Choose one intervention of this sweep with intervention=: {', '.join(present)}{asked}.")
    return rows[rows["intervention"] == intervention], intervention


def with_interval(record: Mapping[Any, Any], metric: str, spec: str = "") -> str:
    """A number and its 95 % interval as text, each written by `spec`; "n/a" where there is none.

    >>> with_interval({"kl": 0.5, "kl_low": 0.25, "kl_high": 0.75}, "kl")
    '0.5 [0.25, 0.75]'
    >>> with_interval({"kl": float("nan"), "kl_low": float("nan"), "kl_high": float("nan")}, "kl")
    'n/a'
    """
    value = as_float(record.get(metric))
    low, high = as_float(record.get(f"{metric}_low")), as_float(record.get(f"{metric}_high"))
    if math.isnan(low) or math.isnan(high):
        return number(value, spec)
    return f"{number(value, spec)} [{number(low, spec)}, {number(high, spec)}]"


def as_float(value: Any) -> float:
    """A cell of a table as a float; every way of writing "missing" becomes NaN.

    >>> as_float(None), as_float(pd.NA), as_float(3)
    (nan, nan, 3.0)
    """
    return math.nan if value is None or value is pd.NA else float(value)
