"""TOVA: the cache drops what the newest token looks at least."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sinklens.policies.scan import Evicting


@dataclass(frozen=True)
class TOVA(Evicting):
    """Keeps the keys that the newest token attends to most, averaged over the heads of the layer.

    No first and no recent token is safe, not even the newest: sinks stay only because they are attended to. One set of
    keys for all heads of a layer.

    Args:
        budget: Keys that stay after a step.
    """

    budget: int = 64

    name: ClassVar[str] = "tova"
    group: ClassVar = "layer"
    source: ClassVar[str] = "Oren et al. 2024, arXiv 2401.06104; schwartz-lab-NLP/TOVA, tova_cache.py"

    @property
    def size(self) -> int:
        """The budget."""
        return self.budget

    def update(
        self, score: Float[Tensor, "head slot"], weights: Float[Tensor, "head slot"], position: int
    ) -> Float[Tensor, "head slot"]:
        """Only the newest row counts, the same for all heads."""
        return weights.mean(0, keepdim=True).expand_as(weights)

    @classmethod
    def sized(cls, keys: int, length: int) -> "TOVA":
        """The budget, with room for the query itself."""
        return cls(max(1, keys - 1))
