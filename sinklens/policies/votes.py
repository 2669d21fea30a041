"""Votes of a prompt's last rows: what rules share that choose once the prompt is read."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.errors import InputError
from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class PromptVotes(Policy):
    """Adds up the attention of the prompt's last rows, block by block and pass by pass.

    Args:
        window: Last rows of the prompt that vote.
        pool: Width of the average over neighbouring keys, an odd number.
    """

    window: int = field(default=32, kw_only=True)
    pool: int = field(default=5, kw_only=True)

    scope: ClassVar = "prompt"
    positive: ClassVar = ("window", "pool")
    evicts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool % 2 == 0:
            raise InputError(f"pool must be an odd number, got {self.pool}.")

    def vote(self, view: View) -> bool:
        """Add what these rows say; whether any row has voted yet."""
        prompt = view.prompt or 0
        voters = (view.rows >= prompt - self.window) & (view.rows < prompt)
        if bool(voters.any()):
            votes = (view.pattern * voters[:, None]).sum(1)
            held = view.state.get("votes", votes.new_zeros(len(view.heads), 0))
            width = max(votes.shape[-1], held.shape[-1])
            pad = torch.nn.functional.pad
            view.state["votes"] = pad(held, (0, width - held.shape[-1])) + pad(votes, (0, width - votes.shape[-1]))
            view.state["first"] = int(view.keys[0])
        return "votes" in view.state

    def votes(self, view: View) -> Float[Tensor, "head k_pos"]:
        """Votes for every key in sight; 0 for keys that came after the prompt."""
        votes: Tensor = view.state["votes"]
        columns = view.keys - view.state["first"]
        inside = (columns >= 0) & (columns < votes.shape[-1]) & (view.keys >= 0)
        found: Tensor = votes[:, columns.clamp(0, votes.shape[-1] - 1)] * inside
        return found

    def pooled(self, votes: Float[Tensor, "head k_pos"]) -> Float[Tensor, "head k_pos"]:
        """Average over neighbouring keys."""
        found: Tensor = torch.nn.functional.avg_pool1d(votes[None], self.pool, 1, self.pool // 2)[0]
        return found
