"""A part of a corpus looked through: which of its tokens hold massive entries, where."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.capture import capture
from sinklens.interventions.massive_finder import EntryFinder
from sinklens.models.tokens import TokenBatch

ENTRY_COLUMNS = ("sequence", "position", "token_id", "token", "layer", "channel", "value", "median")


@dataclass(frozen=True)
class Chunk:
    """Which sequences a part holds.

    Attributes:
        number: From 0.
        first: Number of its first sequence in the corpus.
        tokens: How many tokens it has.
    """

    number: int
    first: int
    tokens: int

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{self.number:05d}"


@dataclass(frozen=True)
class ChunkJob:
    """A part with its tokens; what any executor runs."""

    part: Chunk
    batch: TokenBatch
    absolute: float
    ratio: float
    batch_size: int

    def key(self) -> str:
        """What the numbers of this part depend on, beside what all parts share."""
        ids = self.batch.ids.masked_fill(~self.batch.real, -1)
        return hashlib.sha256(ids.numpy().tobytes()).hexdigest()

    def run(self, model: TransformerBridge, on_share: Callable[[float], None] | None = None) -> pd.DataFrame:
        """One row per massive entry of a token, in every layer: ``ENTRY_COLUMNS``."""
        finder = EntryFinder(self.absolute, self.ratio)
        done = 0
        for start in range(0, len(self.batch), self.batch_size):
            rows = self.batch.rows(slice(start, start + self.batch_size))
            first = self.part.first + start
            capture(model, rows, [finder], batch_size=self.batch_size, first_sequence=first, top_k=1)
            done += int(rows.lengths.sum())
            if on_share is not None:
                on_share(done / max(1, self.part.tokens))
        found = finder.entries().rename(columns={"dim": "channel"})
        rows_of = found["sequence"].to_numpy(int) - self.part.first
        found["token_id"] = self.batch.ids.numpy()[rows_of, found["position"].to_numpy(int)] if len(found) else []
        return found.astype({"token_id": "int64"})[[*ENTRY_COLUMNS]]
