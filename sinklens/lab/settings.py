"""Everything that decides which weights a Bigram-Backcopy training ends with."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from sinklens.lab.bigram_backcopy import BigramBackcopy
from sinklens.lab.checks import at_least, one_of, positive

Optimizer = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class BackcopySettings:
    """Model, data and optimiser of one training; equal settings on one machine give equal weights.

    The optimiser's remaining numbers are the paper's: AdamW with betas (0.9, 0.99), eps 1e-8 and weight decay
    1e-4 on every parameter; SGD with momentum 0.9 and no weight decay. The learning rate is constant,
    gradients are not clipped.

    Attributes:
        layers: number of transformer layers, each with one head.
        d_model: width of the residual stream, and of the head.
        seq_len: positions of a training sequence, and of the position embedding: the model knows no later
            position.
        batch: sequences per step; every step draws fresh ones.
        steps: optimiser steps.
        lr: learning rate.
        seed: decides the initial weights and the data of every step.
        optimizer: "adamw" or "sgd".
        n_triggers: trigger characters of the task.

    Raises:
        InputError: if a number is out of range, or the optimiser is unknown.
    """

    layers: int
    d_model: int
    seq_len: int
    batch: int
    steps: int
    lr: float
    seed: int
    optimizer: Optimizer
    n_triggers: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        at_least(self, layers=1, d_model=1, seq_len=3, batch=1, steps=1, seed=0)
        positive(self, "lr")
        one_of(self, optimizer=get_args(Optimizer))
        _ = self.task

    @classmethod
    def choose(
        cls,
        layers: int,
        *,
        d_model: int = 64,
        seq_len: int = 64,
        batch: int = 64,
        steps: int | None = None,
        lr: float | None = None,
        seed: int = 0,
        optimizer: str = "adamw",
    ) -> "BackcopySettings":
        """Fill in what was left open with values that pass the gates on one CPU core.

        The built-in models differ in the length of their sequences alone, which is 128.

        | layers | optimizer | lr   | steps |
        |--------|-----------|------|-------|
        | 1      | adamw     | 3e-3 | 2,000 |
        | 2, 3.. | adamw     | 1e-3 | 4,000 |
        | any    | sgd       | 3e-2 | as above |
        """
        if steps is None:
            steps = 2000 if layers == 1 else 4000
        if lr is None:
            lr = 3e-2 if optimizer == "sgd" else 3e-3 if layers == 1 else 1e-3
        # An unknown name is refused by __post_init__, with the names that would do.
        return cls(layers, d_model, seq_len, batch, steps, lr, seed, optimizer)  # type: ignore[arg-type]

    @property
    def task(self) -> BigramBackcopy:
        """The data that is trained on; its sequences are as long as the model's context."""
        return BigramBackcopy(n_triggers=self.n_triggers, seq_len=self.seq_len)

    @property
    def command(self) -> str:
        """The command line that repeats this training, `DIR` standing for the target folder."""
        return (
            f"sinklens lab train bb --layers {self.layers} --out DIR --d-model {self.d_model} "
            f"--seq-len {self.seq_len} --batch-size {self.batch} --steps {self.steps} --lr {self.lr} "
            f"--seed {self.seed} --optimizer {self.optimizer}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for JSON."""
        return asdict(self)
