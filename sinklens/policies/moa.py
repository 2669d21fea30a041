"""MoA: a window of its own for every head, growing with the text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.interventions.heads import check_heads, head_name, parse_head
from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class MoA(Policy):
    """Gives each head the window ``alpha + beta N`` that was fitted for it, N being the length of the text.

    ``size = ceil(max(min(alpha + beta N, N), shortest) / step) step``, ``step = 64``; the first ``min(size, step)``
    tokens stay, and the last ``size - step``. A table holds near the lengths that it was fitted for and fails far below
    them.

    Args:
        table: ``(alpha, beta)`` by head, such as ``{"L0H3": (1024, 0.0)}``; heads that are missing read everything.
        n_tokens: N; fixed beforehand, as in the method.
        shortest: Smallest size.
        step: Sizes are multiples of it, and as many first tokens stay.
    """

    table: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    n_tokens: int = 4096
    shortest: int = 128
    step: int = 64

    name: ClassVar[str] = "moa"
    scope: ClassVar = "causal"
    evicts: ClassVar[bool] = True
    positive: ClassVar = ("n_tokens", "step")
    source: ClassVar[str] = "Fu et al. 2024, arXiv 2406.14909; thu-nics/MoA, attention/pattern.py"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            named = {head_name(parse_head(head)): (float(a), float(b)) for head, (a, b) in self.table.items()}
        except (TypeError, ValueError, AttributeError):
            raise InputError(
                f'Expected (alpha, beta) by head, such as {{"L0H3": (1024, 0)}}, got {self.table!r}.'
            ) from None
        object.__setattr__(self, "table", named)

    def __hash__(self) -> int:
        return hash((tuple(self.table.items()), self.n_tokens, self.shortest, self.step))

    def check(self, model: TransformerBridge) -> None:
        """The model has these heads."""
        check_heads(model, tuple(parse_head(head) for head in self.table))

    def size(self, head: str) -> int:
        """Keys that a head reads at most.

        >>> MoA({"L0H0": (-1024, 1), "L0H1": (0, 0.125)}, n_tokens=4096).size("L0H0")
        3072
        """
        alpha, beta = self.table.get(head, (0.0, 1.0))
        wanted = max(min(alpha + beta * self.n_tokens, self.n_tokens), self.shortest)
        return math.ceil(wanted / self.step) * self.step

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """First tokens and each head's own window."""
        sizes = torch.tensor([self.size(head_name((view.layer, head))) for head in view.heads], device=view.keys.device)
        first = view.keys < sizes.clamp(max=self.step)[:, None]
        return first[:, None] | (view.distance < (sizes - self.step)[:, None, None])
