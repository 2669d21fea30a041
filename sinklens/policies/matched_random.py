"""Random keys in the number that a rule reads: the control of equal budget beside it."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.interventions.heads import as_index
from sinklens.policies.base import Policy, claims_of
from sinklens.policies.view import View


@dataclass(frozen=True)
class MatchedRandom(Policy):
    """Reads, in every head and row, as many keys as another rule does: the query's own, and others at random.

    The draw follows from seed, layer, head and row, so that runs repeat whatever the batch, the padding or the cache.
    What the rule changes besides (positions, merged keys) is not done.

    Args:
        policy: The rule whose numbers of keys are taken.
        seed: Of the draw.

    Raises:
        InputError: A rule that changes keys and values, which has no number of keys to match.

    Cost: the rule's own, and a generator for every row of every layer.
    """

    policy: Policy
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.policy
        if not isinstance(given, Policy) or as_index(self.seed) < 0:
            raise InputError(f"Expected a policy and a seed from 0, got {self.policy!r} and {self.seed!r}.")
        if type(self.policy).change_call is not Policy.change_call:
            raise InputError(f"{type(self.policy).__name__} changes keys and values; there is no number to match.")
        for claim, value in (claims_of([self.policy]) | {"group": "head", "evicts": False}).items():
            object.__setattr__(self, claim, value)
        if self.prompt is None:
            object.__setattr__(self, "prompt", self.policy.prompt)

    def check(self, model: TransformerBridge) -> None:
        """The rule takes the model."""
        self.policy.check(model)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Random keys."""
        inner = view.inside("matched")
        changed = replace(inner, scores=self.policy.change_scores(inner))
        kept = self.policy.keep(changed) & changed.visible
        count = self.policy.entries(changed, kept).round().clamp(max=len(view.keys)).long()
        noise = torch.zeros_like(view.scores)
        start = int((view.keys < 0).sum())
        for row, position in enumerate(view.rows.tolist()):
            if position < 0:
                continue
            seed = (self.seed * 100_003 + view.layer) * 1_000_003 + position
            drawn = torch.rand(view.n_heads, position + 1, generator=torch.Generator().manual_seed(seed))
            noise[:, row, start : start + position + 1] = drawn[list(view.heads)].to(noise)
        noise = noise.masked_fill(~view.visible, -1).masked_fill(view.distance == 0, 2)
        order = noise.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return (order < count[..., None]) & view.visible
