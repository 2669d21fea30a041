"""Observers: they look at attention inside the engine and change nothing."""

from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from sinklens.attention.block import AttentionShape
from sinklens.attention.kernel import AttentionCall


class Observer(Protocol):
    """Looks at every layer's attention once; an observer may define either method or both.

    What is handed over is the engine's own memory: read it, copy what is to be kept beyond the call, change nothing.
    """

    def observe(self, call: AttentionCall) -> None:
        """See queries, keys and (edited) values of a layer as attention uses them, after rotation and norms.

        Only the fast path has them: the engine refuses such an observer where it measures through the bridge's hooks.
        """

    def observe_output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        """See what the heads of a layer hand on to ``W_O``, after all edits."""
