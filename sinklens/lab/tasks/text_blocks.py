"""Language modelling as a task of the lab: random blocks of a token stream."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.errors import InputError


@dataclass(frozen=True, eq=False)
class TextBlocks:
    """Blocks of a tokenised corpus, each from a random place, with a BOS in front.

    Attributes:
        stream: the corpus as one row of ids.
        d_vocab: number of token ids, BOS included.
        bos_id: put in front of every block; None for none.
        seq_len: positions of a block where ``sample`` is given none, BOS included.

    Raises:
        InputError: if the stream is shorter than a block or has ids outside the vocabulary.

    Example:
        >>> task = TextBlocks(torch.arange(6), d_vocab=7, bos_id=6, seq_len=4)
        >>> row = task.sample(1, generator=torch.Generator().manual_seed(0))[0].tolist()
        >>> row[0], [b - a for a, b in zip(row[1:], row[2:])]
        (6, [1, 1])
    """

    stream: Int[Tensor, " token"]
    d_vocab: int
    bos_id: int | None = None
    seq_len: int = 128

    def __post_init__(self) -> None:
        """Refuse a stream that gives no block."""
        if self.seq_len < 2 or len(self.stream) < self.seq_len:
            raise InputError(f"{len(self.stream)} tokens hold no block of {self.seq_len} (at least 2).")
        if int(self.stream.min()) < 0 or int(self.stream.max()) >= self.d_vocab:
            raise InputError(f"The stream has ids outside 0 to {self.d_vocab - 1}.")

    def sample(
        self, batch: int, seq_len: int | None = None, generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch pos"]:
        """Draw blocks, with replacement.

        Raises:
            InputError: if the stream is shorter than a block.
        """
        text = (self.seq_len if seq_len is None else seq_len) - (self.bos_id is not None)
        if not 0 < text <= len(self.stream):
            raise InputError(f"{len(self.stream)} tokens hold no block of {text}.")
        start = torch.randint(len(self.stream) - text + 1, (batch, 1), generator=generator)
        block = self.stream[start + torch.arange(text)]
        return block if self.bos_id is None else torch.nn.functional.pad(block, (1, 0), value=self.bos_id)

    def classes(self, ids: Int[Tensor, "batch pos"]) -> dict[str, Bool[Tensor, "batch q_pos"]]:
        """Every target is text."""
        return {"text": torch.ones_like(ids[:, 1:], dtype=torch.bool)}
