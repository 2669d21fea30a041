"""Token ids of several sequences, with padding, special tokens and the provenance of position 0."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.models.unused import Unused

AddedBy = Literal["sinklens", "caller", "nobody"]


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of several sequences, right-padded, with the provenance of position 0.

    Attributes:
        ids: ``[batch pos]``; padding positions hold the pad id.
        real: True at real tokens, False at padding, ``[batch pos]``.
        special: True at special tokens (BOS, EOS, ... by id), never at padding, ``[batch pos]``.
        tokens: Token strings per sequence, padding left out.
        bos_id: The BOS id of the model, ``None`` when it has none.
        bos_added_by: ``"sinklens"`` (as the ``bos`` argument or the model's tokenizer says), ``"caller"`` (the given
            ids start with it) or ``"nobody"``.
        statement: One sentence about the BOS for tables and reports.
        unused: What of the given texts is in no sequence.
    """

    ids: Int[Tensor, "batch pos"]
    real: Bool[Tensor, "batch pos"]
    special: Bool[Tensor, "batch pos"]
    tokens: tuple[tuple[str, ...], ...]
    bos_id: int | None
    bos_added_by: AddedBy
    statement: str
    unused: Unused = field(default_factory=Unused)

    @property
    def dropped(self) -> int:
        """How many tokens of the given texts are in no sequence."""
        return self.unused.total

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Number of real tokens of each sequence."""
        return self.real.sum(1)

    @property
    def text_lengths(self) -> Int[Tensor, " batch"]:
        """Number of real tokens of each sequence without a BOS that sinklens prepended."""
        return self.lengths - int(self.bos_added_by == "sinklens")

    @property
    def bos(self) -> Bool[Tensor, "batch pos"]:
        """True where a real token is the BOS."""
        if self.bos_id is None:
            return torch.zeros_like(self.real)
        return (self.ids == self.bos_id) & self.real

    def __len__(self) -> int:
        return self.ids.shape[0]

    def rows(self, indices: Sequence[int] | slice) -> "TokenBatch":
        """Some sequences, with padding trimmed to the longest of them."""
        chosen = range(len(self))[indices] if isinstance(indices, slice) else indices
        index = torch.tensor([*chosen], dtype=torch.long)
        width = int(self.lengths[index].max()) if len(index) else 0
        return replace(
            self,
            ids=self.ids[index, :width],
            real=self.real[index, :width],
            special=self.special[index, :width],
            tokens=tuple(self.tokens[i] for i in index.tolist()),
        )
