"""Oracle coverage: every row reads the fewest keys that hold a share of its attention."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from sinklens.interventions.fields import parse_number
from sinklens.policies.base import Policy
from sinklens.policies.choose import covering_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class Coverage(Policy):
    """Keeps the fewest keys whose attention adds up to at least ``share`` of the row's: how sparse a head really is.

    Args:
        share: Attention to keep, from 0 to 1.
    """

    share: float = 0.9

    name: ClassVar[str] = "coverage"
    scope: ClassVar = "causal"
    source: ClassVar[str] = "the coverage budget of FlexPrefill, arXiv 2502.20766, with exact scores"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_number(self.share, "share", 0, 1, above=True)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """The largest weights up to the share."""
        return covering_keys(view.pattern, self.share, view.visible)
