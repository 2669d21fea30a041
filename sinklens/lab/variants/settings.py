"""Everything that decides which weights the training of a variant ends with."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from sinklens.errors import InputError
from sinklens.lab.checks import at_least, one_of, positive
from sinklens.lab.settings import Optimizer
from sinklens.lab.tasks import Backcopy, Needle
from sinklens.lab.variants.decoder import DecoderSettings, Norm, Positions

TaskName = Literal["backcopy", "needle"]


@dataclass(frozen=True)
class VariantSettings:
    """Variant, model, data and optimiser of one training; equal settings on one machine give equal weights.

    AdamW has betas (0.9, 0.99), eps 1e-8 and weight decay 1e-4; SGD has momentum 0.9 and no weight decay, as in the
    Bigram-Backcopy study. The learning rate is constant, gradients are not clipped.

    Attributes:
        attention: name of the variant.
        task: "backcopy" or "needle" (one needle of 8 values among 48 tokens; its length is fixed at 67).
        bos: whether position 0 holds BOS (backcopy only).
        triggers: the trigger characters; the three most frequent if None (backcopy only).
        layers, heads, d_model, mlp, norm, positions, window, prefix: see ``DecoderSettings``.
        seq_len: positions of a training sequence, and the model's context.
        batch: sequences per step; every step draws fresh ones.
        steps: optimiser steps.
        lr: learning rate.
        optimizer: "adamw" or "sgd".
        seed: decides initial weights and data.

    Raises:
        InputError: if a number is out of range, or a name is unknown.
    """

    attention: str = "softmax"
    task: TaskName = "backcopy"
    bos: bool = True
    triggers: str | None = None
    layers: int = 1
    heads: int = 1
    d_model: int = 64
    mlp: bool = True
    norm: Norm = "layer"
    positions: Positions = "learned"
    window: int | None = None
    prefix: int = 0
    seq_len: int = 64
    batch: int = 64
    steps: int = 600
    lr: float = 3e-3
    optimizer: Optimizer = "adamw"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        at_least(self, batch=1, steps=1, seed=0, seq_len=3)
        positive(self, "lr")
        one_of(self, optimizer=get_args(Optimizer), task=get_args(TaskName))
        if self.task == "needle" and (not self.bos or self.triggers is not None or self.seq_len != Needle().seq_len):
            raise InputError(
                f"The needle task has a BOS, no triggers and {Needle().seq_len} tokens; leave bos and triggers and set "
                f"seq_len to {Needle().seq_len}."
            )
        if self.prefix >= self.seq_len:
            raise InputError(f"A prefix of {self.prefix} leaves nothing to predict in {self.seq_len} tokens.")
        _ = self.decoder

    @property
    def data(self) -> Backcopy | Needle:
        """The task."""
        if self.task == "needle":
            return Needle()
        return Backcopy(bos=self.bos, triggers=self.triggers, seq_len=self.seq_len)

    @property
    def decoder(self) -> DecoderSettings:
        """The model's shape."""
        names = [field.name for field in fields(DecoderSettings) if field.name not in ("d_vocab", "context")]
        return DecoderSettings(self.data.d_vocab, self.seq_len, **{name: getattr(self, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for JSON."""
        return asdict(self)
