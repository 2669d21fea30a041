"""What of the given texts a measurement does not use: counted by reason, and said."""

from dataclasses import dataclass, fields
from functools import partial

from sinklens.wording import several


@dataclass(frozen=True)
class Unused:
    """Tokens of the given texts that are not measured, by reason; a BOS that sinklens prepended is not counted.

    Attributes:
        cut: Beyond the longest sequence (``max_tokens`` or the context), where texts are not split.
        remainders: In last pieces of split texts that are shorter than half a sequence.
        undrawn: In the sequences that ``max_sequences`` left out.
        undrawn_sequences: How many sequences that are.
        short: In sequences too short to measure.
        short_sequences: How many sequences that are.
    """

    cut: int = 0
    remainders: int = 0
    undrawn: int = 0
    undrawn_sequences: int = 0
    short: int = 0
    short_sequences: int = 0

    @property
    def total(self) -> int:
        """All tokens that are not measured."""
        return self.cut + self.remainders + self.undrawn + self.short

    def __add__(self, other: "Unused") -> "Unused":
        return Unused(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __bool__(self) -> bool:
        return self.total > 0

    def sentence(self, n_sequences: int) -> str:
        """What was left out beside ``n_sequences`` measured ones, in one sentence; empty when nothing was."""
        tokens, sequences = partial(several, what="token"), partial(several, what="sequence")
        parts = []
        if self.undrawn:
            parts.append(f"{tokens(self.undrawn)} of {sequences(self.undrawn_sequences)} that max_sequences left out")
        if self.cut:
            parts.append(f"{tokens(self.cut)} beyond the longest sequence (raise max_tokens, or split the texts)")
        if self.remainders:
            parts.append(f"{tokens(self.remainders)} of last pieces shorter than half a sequence")
        if self.short:
            parts.append(f"{tokens(self.short)} of {sequences(self.short_sequences)} too short to measure")
        if not parts:
            return ""
        every = n_sequences + self.undrawn_sequences + self.short_sequences
        return f"Measured {n_sequences:,} of {sequences(every)}. Not used: {'; '.join(parts)}."
