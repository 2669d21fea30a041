"""An induction training of a few steps; imported by a process of its own too, for tests that kill it."""

from pathlib import Path
from typing import Any

import torch

from sinklens.lab.induction.run import train_induction
from sinklens.lab.induction.settings import InductionSettings

TINY: dict[str, Any] = dict(
    heads=2, kv_heads=1, d_model=16, n_words=64, value_len=3, shortest=20, short_longest=24, longest=67, tokens=160,
    steps=8, lr=1e-2,
)  # fmt: skip
QUIET: dict[str, Any] = {"checkpoint_every": 3, "device": "cpu"}
SETTINGS = InductionSettings(**TINY)


def tiny(out: Path, **changes: Any) -> Path:
    return train_induction(out, **(TINY | QUIET | changes))


def train_slowly(out: str) -> None:
    """Train with a checkpoint after every step, far longer than anybody waits."""
    torch.set_num_threads(1)
    tiny(Path(out), steps=100_000, checkpoint_every=1)
