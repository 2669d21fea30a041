"""What tasks of random words share: draws without replacement, ids, BOS, and which targets are certain."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def after_repeat(ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Return for each position whether its token stands at an earlier position too.

    Cost: a sort of each row.

    Example:
        >>> after_repeat(torch.tensor([[9, 3, 4, 3, 4, 5]])).int().tolist()
        [[0, 0, 0, 1, 1, 0]]
    """
    ordered, order = ids.sort(dim=-1, stable=True)
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter(1, order, again)


def choice(n: int, size: int, batch: int, generator: torch.Generator | None) -> Int[Tensor, "batch size"]:
    """Draw ``size`` of ``range(n)`` for each row, without replacement, in random order.

    Example:
        >>> sorted(choice(3, 3, 1, torch.Generator().manual_seed(0))[0].tolist())
        [0, 1, 2]
    """
    return torch.rand(batch, n, generator=generator).argsort(-1)[:, :size]


@dataclass(frozen=True)
class WordTask:
    """Sequences of a BOS and words without meaning. Ids: 0 to ``n_words - 1``, then BOS."""

    n_words: int = 512

    @property
    def d_vocab(self) -> int:
        """Number of token ids, BOS included."""
        return self.n_words + 1

    @property
    def bos_id(self) -> int:
        """The last id."""
        return self.n_words

    def classes(self, ids: Int[Tensor, "batch pos"]) -> dict[str, Bool[Tensor, "batch q_pos"]]:
        """Return the queries whose target follows from a token that came before ("copy"), and the others ("new")."""
        copied = after_repeat(ids)[:, :-1]
        return {"copy": copied, "new": ~copied}
