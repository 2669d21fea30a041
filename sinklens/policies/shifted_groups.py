"""The shifted groups of LongLoRA and SinkLoRA: kept because they leak."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class ShiftedGroups(Policy):
    """Attention inside groups of tokens; in half of the heads the groups are shifted by half a group.

    The published code rolls the text, so that its *first* tokens stand behind its *last* ones in the last group and
    would read them: a leak of the future. A decoder's own mask takes those keys away here, which leaves such rows with
    the keys of their own half group. Which group wraps depends on the length of the text: scope global.

    Args:
        group_size: Tokens in a group; the published quarter of the text.
        n_tokens: Length of the text, over which the groups wrap.
    """

    group_size: int = 64
    n_tokens: int = 256

    name: ClassVar[str] = "shifted_groups"
    scope: ClassVar = "global"
    positive: ClassVar = ("group_size", "n_tokens")
    source: ClassVar[str] = "Chen et al. 2023 (LongLoRA), arXiv 2309.12307; Dexter-GT-86/SinkLoRA"

    def rolled(self, positions: Tensor) -> Tensor:
        """Where tokens stand after the roll of the shifted heads."""
        return (positions - self.group_size // 2) % self.n_tokens

    def published(self, rows: Tensor, keys: Tensor) -> Bool[Tensor, "q_pos k_pos"]:
        """The mask of a shifted head as released, without a decoder's own: some keys lie in the future."""
        own, other = self.rolled(rows)[:, None], self.rolled(keys)
        return (own // self.group_size == other // self.group_size) & (other <= own)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Own group; the second half of the heads shifted."""
        plain = (view.rows // self.group_size)[:, None] == view.keys // self.group_size
        shifted = self.published(view.rows, view.keys)
        late = torch.tensor([head >= view.n_heads // 2 for head in view.heads], device=view.keys.device)
        return torch.where(late[:, None, None], shifted, plain)
