"""What tasks of random words share: ids, BOS, and which targets are certain."""

from dataclasses import dataclass

from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.lab.tasks.repeats import after_repeat


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
