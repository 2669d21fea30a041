"""Which kernel computes a model's attention on the fast path: found out by ``plan_for``, read by the engine."""

from typing import Literal
from weakref import WeakKeyDictionary

from transformer_lens.model_bridge import TransformerBridge

Kernel = Literal["blocks", "extra pass"]
"""``"blocks"``: exact softmax by blocks of rows, on any device and for everything. ``"extra pass"``: on a GPU with
Triton, fused attention and one more pass over the scores, for what has a closed form; all else by blocks."""

_chosen: WeakKeyDictionary[TransformerBridge, Kernel] = WeakKeyDictionary()


def choose(model: TransformerBridge, kernel: Kernel) -> None:
    """Remember the choice for as long as the model lives."""
    _chosen[model] = kernel


def chosen(model: TransformerBridge) -> Kernel:
    """The choice; ``"blocks"`` before :func:`~sinklens.attention.plan_for` was asked."""
    return _chosen.get(model, "blocks")
