"""What a task is: sequences drawn at random, and classes of targets whose losses are told apart."""

from typing import Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sinklens.models.tokens import TokenBatch


class Task(Protocol):
    """Anything a decoder of the lab can be trained on."""

    @property
    def d_vocab(self) -> int:
        """Number of token ids."""

    @property
    def bos_id(self) -> int | None:
        """The id of BOS, or None for a task without it."""

    def sample(
        self, batch: int, seq_len: int | None = None, generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch pos"]:
        """Draw sequences."""

    def classes(self, ids: Int[Tensor, "batch pos"]) -> dict[str, Bool[Tensor, "batch q_pos"]]:
        """Return which queries ``t < pos - 1`` belong to which class by their target ``x_{t+1}``.

        Classes do not overlap; a query in none of them carries no loss.
        """


def token_batch(task: Task, ids: Int[Tensor, "batch pos"]) -> TokenBatch:
    """Wrap a task's sequences for capture and detectors; tokens are spelled by their ids.

    Example:
        >>> from sinklens.lab.tasks import Backcopy
        >>> batch = token_batch(Backcopy(), torch.tensor([[65, 3, 1]]))
        >>> batch.bos.tolist(), batch.bos_added_by
        ([[True, False, False]], 'caller')
    """
    bos = task.bos_id
    starts = bos is not None and bool((ids[:, 0] == bos).all())
    special = torch.zeros_like(ids, dtype=torch.bool) if bos is None else ids == bos
    return TokenBatch(
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        special,
        tuple(tuple(str(i) for i in row) for row in ids.tolist()),
        bos,
        "caller" if starts else "nobody",
        "The task puts a BOS first." if starts else "The task has no BOS.",
    )
