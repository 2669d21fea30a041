"""Attention outputs and the log-sum-exp of every row, from torch's own fused kernels."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.attention.kernel import AttentionCall
from sinklens.attention.score_form import ScoreForm

BLOCK = 128
"""Queries and keys of a block of FlexAttention's mask."""


def fused_lse(
    call: AttentionCall, form: ScoreForm
) -> tuple[Float[Tensor, "batch head q_pos d_value"], Float[Tensor, "batch head q_pos"]]:
    """Output without a learned sink, and log-sum-exp (fp32, ``-inf`` for a row that sees nothing).

    Flash attention where scores are scaled products under a full causal mask in half precision, FlexAttention for all
    other forms; both read each key once and write nothing of size ``q_pos k_pos``.
    """
    if _takes_flash(call, form):
        found = torch.ops.aten._scaled_dot_product_flash_attention(
            call.query, call.key, call.value, 0.0, True, False, scale=call.scaling
        )
        return found[0], found[1][..., : form.shape.q_pos].float()
    return _flex(call, form)


def _takes_flash(call: AttentionCall, form: ScoreForm) -> bool:
    width, change = call.query.shape[-1], form.change
    plain = form.causal and not form.window and form.keys is None and call.soft_cap is None
    plain = plain and change.shift is None and change.limits is None and form.shape.offset == 0
    half = call.query.dtype in (torch.float16, torch.bfloat16)
    fits = width % 8 == 0 and width <= 256 and call.value.shape[-1] == width
    return plain and half and fits and call.query.device.type == "cuda" and torch.version.cuda is not None


def _flex(call: AttentionCall, form: ScoreForm) -> tuple[Tensor, Tensor]:
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask

    shape, change = form.shape, form.change
    # numbers go in as tensors: as plain numbers each new one would compile the kernel anew
    offset = torch.tensor(shape.offset, device=shape.device)
    window = torch.tensor(form.window or shape.k_pos + shape.q_pos, device=shape.device)
    cap = torch.tensor(call.soft_cap or 1.0, device=shape.device)
    keys, shift, limits, spared = form.keys, change.shift, change.limits, change.spared
    capped, causal, spare_self = call.soft_cap is not None, form.causal, change.spare_self

    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        own = i + offset
        seen = own - j < window
        if causal:
            seen = seen & (j <= own)
        if keys is not None:
            seen = seen & keys[b, j]
        if limits is not None and spared is not None:
            seen = seen & ((limits[h] == 0) | (own - j < limits[h]) | spared[b, j])
        if shift is not None:
            shown = shift[b, h, j] > -torch.inf
            seen = seen & ((shown | (j == own)) if spare_self else shown)
        return seen

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if capped:
            score = cap * torch.tanh(score / cap)
        if shift is not None:
            added = shift[b, h, j]
            score = score + torch.where(added > -torch.inf, added, 0.0)
        return score

    counts, indices = _blocks(form)
    mask: Any = BlockMask.from_kv_blocks(
        counts,
        indices,
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(shape.q_pos, shape.k_pos),
        compute_q_blocks=False,
    )
    run = _compiled() if shape.device.type == "cuda" and torch.version.cuda is not None else _eager()
    out, aux = run(
        call.query,
        call.key,
        call.value,
        score_mod=score_mod if capped or shift is not None else None,
        block_mask=mask,
        scale=call.scaling,
        enable_gqa=call.key.shape[1] != call.query.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    return out, aux.lse.float()


def _blocks(form: ScoreForm) -> tuple[Tensor, Tensor]:
    """Blocks of keys that each block of queries may see; all of them are masked entry by entry."""
    shape = form.shape
    n_queries, n_keys = (-(-count // BLOCK) for count in (shape.q_pos, shape.k_pos))
    start = torch.arange(n_queries, device=shape.device) * BLOCK + shape.offset
    last = (start + BLOCK - 1).clamp(max=shape.k_pos - 1) // BLOCK
    last = last if form.causal else torch.full_like(last, n_keys - 1)
    first = (start + 1 - form.window).clamp(min=0) // BLOCK if form.window else torch.zeros_like(last)
    indices = (first[:, None] + torch.arange(n_keys, device=shape.device)).clamp(max=n_keys - 1)
    counts = (last - first + 1).to(torch.int32)
    return counts[None, None].contiguous(), indices.to(torch.int32)[None, None].contiguous()


@cache
def _compiled() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(_eager(), dynamic=True)
    return compiled


def _eager() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention
