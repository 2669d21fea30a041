"""Everything that decides which weights a language-model training ends with."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from sinklens.errors import InputError
from sinklens.lab.checks import at_least, not_negative, positive
from sinklens.lab.schedule import trapezoid

CONTEXT = 512


@dataclass(frozen=True)
class LanguageSettings:
    """Model, data and optimiser of one training; equal settings on one machine give equal weights.

    Fixed: Llama with tied embeddings, RoPE and SwiGLU MLP; AdamW with betas (0.9, 0.95), eps
    1e-8, weight decay on matrices alone (norm gains are spared), gradients clipped to norm 1; warm-up over 200
    steps (or a tenth of a shorter training), then a constant learning rate, then linear decay to 0 over the
    last fifth.

    Attributes:
        layers: transformer layers.
        heads: attention heads per layer; each has its own keys and values.
        d_model: width of the residual stream; a multiple of twice the heads, as RoPE needs.
        d_mlp: width of the MLP.
        rope_base: of RoPE's frequencies; the larger, the more of a head's dimensions do not feel the distance.
        vocab: tokens of the byte-level BPE, BOS and the 256 bytes included.
        seq_len: tokens of a sequence, BOS included.
        batch: sequences per step.
        long_len: tokens of a sequence in the long steps, whose batch is smaller by as much.
        long_every: every so many steps is a long one; 0 for none.
        long_from: no step before this one is long: short sequences bring the sink soonest, long ones teach the
            model to use its context.
        steps: optimiser steps.
        lr: peak learning rate.
        weight_decay: of the matrices.
        seed: decides the initial weights and the data of every step.
        held_out: share of each domain's characters that is never trained on.
        series: number of checkpoints kept, log-spaced, the untrained model and the final one included.
        measure_every: steps between two rows of the curve.
        data: digest of each domain's documents, by domain.

    Raises:
        InputError: if a number is out of range.
    """

    layers: int = 4
    heads: int = 4
    d_model: int = 128
    d_mlp: int = 336
    rope_base: float = 500_000.0
    vocab: int = 2048
    seq_len: int = 96
    batch: int = 48
    long_len: int = 256
    long_every: int = 4
    long_from: int = 2400
    steps: int = 8000
    lr: float = 6e-3
    weight_decay: float = 0.1
    seed: int = 0
    held_out: float = 0.05
    series: int = 9
    measure_every: int = 100
    data: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        at_least(self, layers=1, heads=1, d_model=2, d_mlp=1, vocab=257, seq_len=2, batch=1)
        at_least(self, long_len=2, long_every=0, long_from=0, steps=1, seed=0, series=2, measure_every=1)
        if max(self.seq_len, self.long_len) > CONTEXT:
            raise InputError(
                f"seq_len and long_len must be at most {CONTEXT}, the model's context, "
                f"not {self.seq_len} and {self.long_len}."
            )
        if self.d_model % (2 * self.heads):
            raise InputError(f"d_model must be a multiple of {2 * self.heads} (twice the heads), not {self.d_model}.")
        positive(self, "lr")
        if not (math.isfinite(self.rope_base) and self.rope_base > 1):
            raise InputError(f"The base of RoPE must be above 1, not {self.rope_base}.")
        not_negative(self, "weight_decay")
        if not 0 < self.held_out <= 0.5:
            raise InputError(f"The held-out share must be above 0 and at most 0.5, not {self.held_out}.")

    def shape(self, step: int) -> tuple[int, int]:
        """Sequences and tokens per sequence of one step (from 0).

        Example:
            >>> settings = LanguageSettings(long_from=4)
            >>> [settings.shape(step) for step in (0, 3, 4, 7)]
            [(48, 96), (48, 96), (48, 96), (18, 256)]
        """
        if self.long_every and step >= self.long_from and step % self.long_every == self.long_every - 1:
            return self.long_shape
        return self.batch, self.seq_len

    @property
    def long_shape(self) -> tuple[int, int]:
        """Sequences and tokens per sequence of a long step: as many tokens in all as a short one has, or fewer."""
        return max(1, self.batch * self.seq_len // self.long_len), self.long_len

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that is trained on."""
        return max(self.seq_len, self.long_len) if self.long_every and self.long_from < self.steps else self.seq_len

    def tokens(self, steps: int) -> int:
        """Tokens seen after so many steps, BOS included."""
        every = self.long_every
        long = max(0, steps // every - self.long_from // every) if every else 0
        return (steps - long) * self.batch * self.seq_len + long * math.prod(self.long_shape)

    def rate(self, step: int) -> float:
        """Learning rate of one step (from 0): linear warm-up, constant, linear decay to 0.

        Example:
            >>> settings = LanguageSettings(steps=1000, lr=1.0)
            >>> [settings.rate(step) for step in (0, 99, 500, 799, 900, 999)]
            [0.01, 1.0, 1.0, 1.0, 0.5, 0.005]
        """
        return trapezoid(step, self.steps, self.lr)

    @property
    def kept(self) -> tuple[int, ...]:
        """Steps after which a checkpoint is kept: 0, then equal ratios from a 64th of the training to its end.

        Example:
            >>> LanguageSettings(steps=6400, series=8).kept
            (0, 100, 200, 400, 800, 1600, 3200, 6400)
        """
        count = self.series - 1
        first = max(1.0, self.steps / 64)
        spaced = {round(first * (self.steps / first) ** (index / max(1, count - 1))) for index in range(count - 1)}
        return tuple(sorted({0, self.steps} | spaced))

    @property
    def command(self) -> str:
        """The options of the command line that repeat this training, data and folder apart."""
        options = [
            f"--{name.replace('_', '-')} {getattr(self, name)}"
            for name in asdict(self)
            if name != "data" and getattr(self, name) != getattr(LanguageSettings, name)
        ]
        return " ".join(options)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for JSON."""
        return asdict(self)
