"""The residual stream of a reference text after some layers, a few sequences at a time."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, plan_for
from sinklens.interventions.entries import hook_name
from sinklens.models.rope import forward_passes
from sinklens.models.tokens import TokenBatch

ROWS_AT_ONCE = 8


class Stream(NamedTuple):
    """One layer's residual stream for some sequences.

    Attributes:
        layer: Layer index; -1 is the embedding's output.
        first: Number of the first of these sequences in the batch.
        hidden: ``[batch pos d_model]``.
        positions: Position of every token, -1 at padding, ``[batch pos]``.
    """

    layer: int
    first: int
    hidden: Float[Tensor, "batch pos d_model"]
    positions: Int[Tensor, "batch pos"]

    @property
    def real(self) -> Bool[Tensor, "batch pos"]:
        """True at real tokens."""
        return self.positions >= 0


@torch.no_grad()
def residual_streams(model: TransformerBridge, batch: TokenBatch, layers: Sequence[int]) -> Iterator[Stream]:
    """The residual stream after each of ``layers``, for eight sequences of the batch at a time.

    Args:
        model: The bridge; it is left as it was.
        batch: Tokens from :func:`sinklens.tokenize`.
        layers: Layer indices; -1 is the embedding's output.

    Cost: one forward pass of the batch; memory for the named layers of eight sequences.
    """
    path = plan_for(model).path
    device = next(model.parameters()).device
    for chosen in forward_passes(model, batch, ROWS_AT_ONCE):
        rows = batch.rows(chosen)
        positions = torch.arange(rows.ids.shape[1]).expand_as(rows.ids).masked_fill(~rows.real, -1)
        kept: dict[str, Tensor] = {}

        def keep(hidden: Tensor, hook: Any, kept: dict[str, Tensor] = kept) -> None:
            kept[hook.name] = hidden.detach().clone()

        hooks: list[tuple[str, Any]] = [(hook_name(layer), keep) for layer in layers]
        # right padding needs no attention mask: real tokens never see what comes after them
        with AttentionEngine(model, path=path), model.hooks(fwd_hooks=hooks):
            model(rows.ids.to(device), return_type=None)
        for layer in layers:
            hidden = kept[hook_name(layer)]
            yield Stream(layer, chosen.start, hidden, positions.to(hidden.device))
