"""Everything that decides which weights an induction training ends with."""

from dataclasses import asdict, dataclass
from typing import Any

from sinklens.errors import InputError
from sinklens.lab.checks import at_least, not_negative, positive
from sinklens.lab.schedule import trapezoid
from sinklens.lab.tasks import DistinctNeedle, RepeatedSpans

LAYERS = 2
MEASURED = 65
"""Tokens of the sequences on which heads are measured."""


@dataclass(frozen=True)
class InductionSettings:
    """Model, data and optimiser of one training; equal settings on one machine give equal weights.

    Fixed: two layers; half of every batch are needles and half repeated spans; AdamW with betas (0.9, 0.95), weight
    decay on matrices alone, gradients clipped to norm 1; warm-up, constant rate, linear decay over the last fifth. All
    sequences of a step have one length, log-uniform between ``shortest`` and ``longest``; in the first
    ``short_share`` of the steps between ``shortest`` and ``short_longest``: induction heads form much sooner on short
    sequences, and then learn to look far.

    Attributes:
        heads: attention heads per layer.
        kv_heads: heads of keys and values per layer, each read by as many heads.
        d_model: width; a multiple of twice the heads, as RoPE needs.
        n_words: ordinary tokens; BOS comes on top.
        value_len: values of a needle.
        shortest: tokens of the shortest training sequence, BOS included.
        short_longest: of the longest one in the first steps.
        longest: of the longest one; this is the model's context too.
        short_share: share of the steps that keep to short sequences.
        tokens: tokens of a step, about.
        new_weight: weight of the loss on tokens that nothing announces, beside 1 for those that follow from an earlier
            occurrence. The former teach the heads where to rest.
        rope_base: of RoPE's frequencies.
        steps: optimiser steps.
        lr: peak learning rate.
        weight_decay: of the matrices.
        seed: decides the initial weights and the data of every step.

    Raises:
        InputError: if a number is out of range.
    """

    heads: int = 4
    kv_heads: int = 4
    d_model: int = 128
    n_words: int = 512
    value_len: int = 8
    shortest: int = 32
    short_longest: int = 96
    longest: int = 512
    short_share: float = 0.4
    tokens: int = 4096
    new_weight: float = 0.1
    rope_base: float = 10_000.0
    steps: int = 2000
    lr: float = 3e-3
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        at_least(self, heads=1, kv_heads=1, steps=1, seed=0, tokens=1)
        if self.heads % self.kv_heads:
            raise InputError(f"heads must be a multiple of kv_heads, not {self.heads} with {self.kv_heads}.")
        if self.d_model < 1 or self.d_model % (2 * self.heads):
            raise InputError(f"d_model must be a multiple of {2 * self.heads} (twice the heads), not {self.d_model}.")
        if not self.shortest <= self.short_longest <= self.longest:
            raise InputError(
                "shortest <= short_longest <= longest is needed, not "
                f"{self.shortest}, {self.short_longest} and {self.longest}."
            )
        if self.longest < MEASURED:
            raise InputError(f"longest must be at least {MEASURED}, so that the model can be measured.")
        positive(self, "lr", "rope_base")
        not_negative(self, "weight_decay", "new_weight")
        if not 0 <= self.short_share <= 1:
            raise InputError(f"short_share must be from 0 to 1, not {self.short_share}.")
        for length in (self.shortest, self.longest):
            _ = DistinctNeedle(self.n_words, self.value_len, length), RepeatedSpans(self.n_words, seq_len=length)

    @property
    def needle(self) -> DistinctNeedle:
        """The needle half of the data."""
        return DistinctNeedle(self.n_words, self.value_len, self.shortest)

    @property
    def spans(self) -> RepeatedSpans:
        """The other half."""
        return RepeatedSpans(self.n_words, seq_len=self.shortest)

    def rate(self, step: int) -> float:
        """Learning rate of one step (from 0)."""
        return trapezoid(step, self.steps, self.lr)

    def longest_at(self, step: int) -> int:
        """Tokens of the longest sequence that one step (from 0) may have.

        Example:
            >>> settings = InductionSettings(steps=10)
            >>> [settings.longest_at(step) for step in (0, 3, 4, 9)]
            [96, 96, 512, 512]
        """
        return self.short_longest if step < self.short_share * self.steps else self.longest

    @property
    def command(self) -> str:
        """The command line that repeats this training, `DIR` standing for the target folder."""
        options = [
            f"--{name.replace('_', '-')} {value}"
            for name, value in asdict(self).items()
            if value != getattr(InductionSettings, name)
        ]
        return " ".join(["sinklens lab train induction --out DIR", *options])

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for JSON."""
        return asdict(self)
