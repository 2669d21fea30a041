"""Oracle top-k: every row reads its largest scores."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class TopK(Policy):
    """Keeps the ``k`` keys with the largest scores, per head and row: the most attention any ``k`` keys can hold.

    It computes every score first, so it saves nothing: an upper bound for rules of equal size. RetrievalAttention's
    approximate index stands below it: ``TopK(100) | SinkWindow(128, 512)``.

    Args:
        k: Keys a row reads.
    """

    k: int = 64

    name: ClassVar[str] = "top_k"
    scope: ClassVar = "causal"
    source: ClassVar[str] = "upper bound of RetrievalAttention, arXiv 2409.10516"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """The largest scores."""
        return top_keys(view.scores, self.k, view.visible)

    @classmethod
    def sized(cls, keys: int, length: int) -> "TopK":
        """The budget itself."""
        return cls(keys)
