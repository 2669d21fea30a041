"""Is it more than chance: effects, paired intervals, contrasts, random and idle controls."""

from typing import TYPE_CHECKING

from sinklens.lazy import load_lazily

if TYPE_CHECKING:
    from sinklens.evidence.bootstrap import paired_interval
    from sinklens.evidence.controls import all_heads, compare_with_controls, random_head_sets
    from sinklens.evidence.effects import Answers, token_losses

__all__ = [
    "Answers",
    "all_heads",
    "compare_with_controls",
    "paired_interval",
    "random_head_sets",
    "token_losses",
]

load_lazily(__name__)
