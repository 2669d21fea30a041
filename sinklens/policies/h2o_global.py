"""H2O with sums over the whole text: the rule that looks ahead."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class H2OGlobal(Policy):
    """Keeps the keys with the most attention over *all* rows of the text, and a recent band: it knows the future.

    The default in H2O's own lm-eval path. A row may read a key because later rows like it, so its loss means nothing;
    kept to show what such a leak looks like.

    Args:
        heavy: Columns with the largest sums.
        recent: ``t - i <= recent``.
    """

    heavy: int = 32
    recent: int = 32

    name: ClassVar[str] = "h2o_global"
    scope: ClassVar = "global"
    source: ClassVar[str] = "FMInference/H2O, lm-eval path"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """The same columns for every row, and the band."""
        first, last = view.span
        sums = view.whole.scores_of(first, last).softmax(-1).nan_to_num(0).sum(1)
        chosen = top_keys(sums, self.heavy, view.whole.is_text.expand_as(sums))
        return chosen[:, None, : len(view.keys)] | (view.distance <= self.recent)

    @classmethod
    def sized(cls, keys: int, length: int) -> "H2OGlobal":
        """Half and half; every column of a text that is no longer."""
        return cls(max(1, keys // 2 if keys < length else keys), max(1, keys - keys // 2 - 1))
