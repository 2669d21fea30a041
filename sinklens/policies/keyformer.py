"""Keyformer: heavy hitters with noise on their scores."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.policies.scan import HeavyHitters


@dataclass(frozen=True)
class Keyformer(HeavyHitters):
    """Keeps heavy hitters as H2O does, but scores each key by a softmax with Gumbel noise and a rising temperature.

    ``score_i += softmax_i((log p_t + Gumbel) / tau)``, tau from 1 to 2 in steps of .01. The noise keeps keys that the
    dropped ones would have supported. Random: report several seeds.

    Args:
        heavy: Heavy hitters.
        recent: Most recent tokens.
        seed: Of the noise.
        tau: First temperature.
        step: Rise with every token, up to twice the first.
    """

    seed: int = 0
    tau: float = 1.0
    step: float = 0.01

    name: ClassVar[str] = "keyformer"
    source: ClassVar[str] = "Adnan et al. 2024, arXiv 2403.09054; d-matrix-ai/keyformer-llm"

    def update(
        self, score: Float[Tensor, "head slot"], weights: Float[Tensor, "head slot"], position: int
    ) -> Float[Tensor, "head slot"]:
        """Noisy attention adds up; the noise of a row follows from seed and position, so that runs repeat."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + position)
        uniform = torch.rand(weights.shape, generator=generator).clamp(1e-9, 1 - 1e-7).to(weights)
        gumbel = -(-uniform.log()).log()
        tau = min(self.tau + self.step * position, 2 * self.tau)
        return score + torch.softmax((weights.clamp(min=1e-30).log() + gumbel) / tau, -1)

    @classmethod
    def sized(cls, keys: int, length: int) -> "Keyformer":
        """Seven tenths heavy, three recent, with room for the query itself."""
        recent = max(1, round(0.3 * (keys - 1)))
        return cls(max(1, keys - 1 - recent), recent)
