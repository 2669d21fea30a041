"""Is it more than chance: effects, paired intervals, contrasts, random and idle controls."""

from sinklens.evidence.bootstrap import Interval, paired_interval
from sinklens.evidence.controls import (
    ControlComparison,
    RandomHeadSets,
    all_heads,
    compare_with_controls,
    random_head_sets,
)
from sinklens.evidence.effects import Answers, Reference, token_losses
from sinklens.evidence.idle_heads import idle_heads
from sinklens.evidence.summary import summarise

__all__ = [
    "Answers",
    "ControlComparison",
    "Interval",
    "RandomHeadSets",
    "Reference",
    "all_heads",
    "compare_with_controls",
    "idle_heads",
    "paired_interval",
    "random_head_sets",
    "summarise",
    "token_losses",
]
