"""How much of a KV cache is kept when some heads stream: in tokens by formula, and in bytes of real tensors."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionCall, AttentionEngine, plan_for
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions.heads import Head


@dataclass(frozen=True)
class KVBudget:
    """Cache entries (a key and a value of one KV head) kept of those that full attention holds.

    Attributes:
        kept: Entries kept, all layers and KV heads together.
        full: Entries that full attention keeps.
    """

    kept: int
    full: int

    @property
    def fraction(self) -> float:
        """Share that is kept."""
        return self.kept / self.full

    @property
    def compression(self) -> float:
        """How many times smaller the cache is."""
        return self.full / self.kept


def kv_budget(
    n_tokens: int, n_retrieval: int, n_streaming: int, *, sinks: int, recent: int, compensation: bool = False
) -> KVBudget:
    """``H_r T + H_s min(T, sinks + recent [+ 1])`` entries of ``(H_r + H_s) T``.

    Args:
        n_tokens: Length of the text, T.
        n_retrieval: KV heads that keep everything, all layers together, H_r.
        n_streaming: KV heads that stream, H_s.
        sinks: First tokens kept by those.
        recent: Most recent tokens kept.
        compensation: Whether what they drop stays as one entry more (RazorAttention).

    Raises:
        InputError: A number below 0, or nothing to count.

    >>> kv_budget(1000, 32, 96, sinks=64, recent=256).fraction
    0.49
    >>> kv_budget(100, 0, 1, sinks=4, recent=10, compensation=True).kept
    15
    """
    if min(n_tokens, n_retrieval, n_streaming, sinks, recent) < 0 or n_tokens * (n_retrieval + n_streaming) == 0:
        raise InputError(
            f"Expected a text and some KV heads to count, got {n_tokens} tokens, {n_retrieval} + {n_streaming} heads, "
            f"{sinks} sinks and {recent} recent tokens."
        )
    cut = sinks + recent < n_tokens
    held = sinks + recent + compensation if cut else n_tokens
    return KVBudget(n_retrieval * n_tokens + n_streaming * held, (n_retrieval + n_streaming) * n_tokens)


@torch.no_grad()
def measure_kv_bytes(
    model: TransformerBridge,
    ids: Int[Tensor, "batch pos"],
    streaming_kv: Collection[Head],
    *,
    sinks: int,
    recent: int,
    compensation: bool = False,
) -> KVBudget:
    """Bytes of keys and values after a text, full and cut, from the tensors themselves.

    The keys and values of one forward pass are cut by KV head (dropped ones averaged into one entry for
    ``compensation``) and their bytes added up.

    Args:
        model: The bridge.
        ids: The text.
        streaming_kv: KV heads that stream, as ``(layer, kv_head)``.
        sinks: First tokens kept by those.
        recent: Most recent tokens kept.
        compensation: Whether the mean of what is dropped is kept.

    Returns:
        ``kept`` and ``full`` in bytes.

    Raises:
        UnsupportedArchitectureError: The model is not on the engine's fast path.

    Cost: one forward pass; the cache of one layer is held at a time.
    """
    if plan_for(model).path != "fast":
        raise UnsupportedArchitectureError(
            f"Keys of {model.cfg.architecture} do not pass through the engine's fast path; count them with kv_budget."
        )
    weighing = _Weighing(set(streaming_kv), sinks, recent, compensation)
    with AttentionEngine(model, observers=[weighing], edited=()):
        model(ids.to(next(model.parameters()).device))
    return KVBudget(weighing.kept, weighing.full)


class _Weighing:
    """Observer that adds up the bytes of keys and values, whole and as the budget would keep them."""

    def __init__(self, streaming: set[Head], sinks: int, recent: int, compensation: bool) -> None:
        self.streaming, self.sinks, self.recent, self.compensation = streaming, sinks, recent, compensation
        self.kept = self.full = 0

    def observe(self, call: AttentionCall) -> None:
        """Add one layer's."""
        n_tokens = call.key.shape[2]
        position = torch.arange(n_tokens, device=call.key.device)
        stays = (position < self.sinks) | (position >= n_tokens - self.recent)
        for states in (call.key, call.value):
            self.full += states.nbytes
            for kv_head in range(states.shape[1]):
                entries = states[:, kv_head]
                if (call.layer, kv_head) in self.streaming:
                    dropped = entries[:, ~stays]
                    extra = [dropped.mean(1, keepdim=True)] if self.compensation and dropped.shape[1] else []
                    entries = torch.cat([entries[:, stays], *extra], 1)
                self.kept += entries.nbytes
