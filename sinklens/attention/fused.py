"""Attention outputs from torch's fused kernel, also for new tokens after a cache; nothing is measured."""

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sinklens.attention.kernel import AttentionCall, attend, is_plain
from sinklens.attention.masks import LazyMask

ROWS = {"cpu": 512, "cuda": 4096}
"""Query rows in hand at once where a mask has to be written out."""


def fused(call: AttentionCall) -> Float[Tensor, "batch head q_pos d_value"]:
    """The call's head outputs from torch's fused attention where its mask is plainly causal, else the engine's own.

    New tokens after a cache (``q_pos < k_pos``) see the whole cache and each other causally. torch has no fused form of
    that triangle in the lower right corner, so its mask is written out for a few hundred rows at a time.

    Cost: that of fused attention; memory O(rows k_pos) for a mask, never ``q_pos k_pos``.
    """
    # torch's fastest kernels take `is_causal` and no mask, so a mask that says no more than that is dropped
    if isinstance(call.mask, LazyMask) and call.mask.causal_only:
        call = replace(call, mask=None)
    shape = call.shape
    shaped = call.soft_cap is not None or call.bias is not None or call.sink_logits is not None
    shaped = shaped or call.value.shape[-1] != call.query.shape[-1]  # there torch would write out the whole pattern
    one_row = shape.q_pos == 1 and call.mask is None  # a single new token sees the whole cache: nothing to mask
    if shaped or not (one_row or is_plain(call)):
        return attend(call)
    run = partial(scaled_dot_product_attention, scale=call.scaling, enable_gqa=call.key.shape[1] != call.query.shape[1])
    if one_row or shape.q_pos == shape.k_pos:
        return run(call.query, call.key, call.value, is_causal=not one_row)
    step = ROWS.get(shape.device.type, ROWS["cpu"])
    positions = torch.arange(shape.k_pos, device=shape.device)
    parts = []
    for start in range(0, shape.q_pos, step):
        stop = min(start + step, shape.q_pos)
        seen = stop + shape.offset  # keys after the last row of the part are hidden from all of it
        visible = positions[None, :seen] <= positions[start + shape.offset : seen, None]
        key, value = call.key[:, :, :seen], call.value[:, :, :seen]
        parts.append(run(call.query[:, :, start:stop], key, value, attn_mask=visible))
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]
