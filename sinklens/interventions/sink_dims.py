"""Sink channels: the dimensions of the residual stream whose extreme values mark a sink token."""

import re
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention.turns import turn
from sinklens.errors import InputError
from sinklens.models.tokens import Ids, TokenBatch, as_batch
from sinklens.wording import several

EPS = 1e-6

FIRST_LAYER = 2
"""Massive activations appear in the first layers; before this one nothing is looked for."""


def channel_ratios(hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """``|x_d| / RMS(x)`` with ``RMS(x) = sqrt(mean_d x_d^2 + 1e-6)``, in fp32 and without any norm's gain.

    Does not depend on the scale of x (as long as it is well above 0.001), and is at most ``sqrt(d_model)``.

    >>> channel_ratios(torch.tensor([0.0, -4.0, 0.0, 0.0]))
    tensor([0.0000, 2.0000, 0.0000, 0.0000])
    """
    hidden = hidden.float()
    return hidden.abs() / (hidden.pow(2).mean(-1, keepdim=True) + EPS).sqrt()


def entered_layer(name: str) -> int | None:
    """Layer that the hook point of this name shows the entry of, ``None`` for other hook points.

    >>> entered_layer("blocks.12.hook_in"), entered_layer("blocks.12.hook_out")
    (12, None)
    """
    match = re.fullmatch(r"blocks\.(\d+)\.hook_in", name)
    return int(match[1]) if match else None


@checked
@torch.no_grad()
def find_sink_dims(
    model: TransformerBridge,
    batch: TokenBatch | Ids,
    *,
    min_ratio: float = 20.0,
    min_share: float = 0.5,
    batch_size: int = 8,
) -> tuple[int, ...]:
    """Channels of the residual stream that are extreme at position 0 in the middle of the network; there may be none.

    A dimension d is one if ``z[l, d] = |x_d| / RMS(x)``, averaged over the sequences, is at least ``min_ratio`` in at
    least ``min_share`` of the middle layers; x is the hidden state of position 0 that enters layer l, and the middle
    layers are 2 to the last (so the embedding, the first layer's output and what leaves the last layer do not count).
    Small models often have none. With fewer than ``min_ratio ** 2`` dimensions there cannot be any.

    The method's authors list the dimensions of a few models (LLaVA-1.5-7B and Llama-2-7B: 1415 and 2533) and give no
    procedure; this one is sinklens' own.

    Args:
        model: The bridge.
        batch: Tokens from :func:`sinklens.tokenize`; position 0 should be what the model's sinks sit on, usually a BOS.
        min_ratio: Smallest ratio, the method's tau.
        min_share: Share of the middle layers, above 0 and up to 1.
        batch_size: Sequences in one forward pass.

    Raises:
        InputError: The model has no layer 2, or an argument is out of range.

    Cost: a forward pass of one token per sequence; position 0 sees no other.
    """
    batch = as_batch(model, batch)
    n_layers = len(model.blocks)
    if n_layers <= FIRST_LAYER:
        raise InputError(
            f"Sink dimensions are looked for from layer {FIRST_LAYER} on; the model has {several(n_layers, 'layer')}."
        )
    if not min_ratio > 0 or not 0 < min_share <= 1 or batch_size < 1:
        raise InputError(
            f"Expected min_ratio above 0, min_share above 0 and up to 1 and batch_size from 1, got {min_ratio}, "
            f"{min_share} and {batch_size}."
        )
    totals: dict[int, Tensor] = {}

    def add(hidden: Float[Tensor, "batch pos d_model"], hook: Any, layer: int) -> None:
        total = channel_ratios(hidden[:, 0]).double().sum(0).cpu()
        totals[layer] = totals[layer] + total if layer in totals else total

    hooks = [(f"blocks.{layer}.hook_in", partial(add, layer=layer)) for layer in range(FIRST_LAYER, n_layers)]
    with turn(model), model.hooks(fwd_hooks=hooks):
        for start in range(0, len(batch), batch_size):
            ids = batch.rows(slice(start, start + batch_size)).ids
            model(ids[:, :1].to(next(model.parameters()).device), return_type=None)
    ratios = torch.stack([totals[layer] for layer in sorted(totals)]) / len(batch)
    share = (ratios >= min_ratio).double().mean(0)
    return tuple((share >= min_share).nonzero().flatten().tolist())
