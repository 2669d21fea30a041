"""Norms, medians and largest entries of the residual stream."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from sinklens.capture.look import summary
from sinklens.capture.record import ResidualNorms


def residual_norms(
    residual: Float[Tensor, "batch pos d_model"], real: Bool[Tensor, "batch pos"], k: int = 5
) -> ResidualNorms:
    """Summarise one layer's residual stream; padding is left out of everything.

    Args:
        residual: Hidden states of one layer.
        real: True at real tokens.
        k: How many of the largest entries to keep per sequence, with token and channel; NaN and -1 where a
            sequence has fewer.

    Cost: one look at ``residual``, and a second at what has the size of its median.

    Example:
        >>> import torch
        >>> h = torch.tensor([[[3.0, -4.0], [1.0, 1.0]]])
        >>> r = residual_norms(h, torch.ones(1, 2, dtype=torch.bool), k=1)
        >>> r.norm[0, 0].item(), r.median.item()
        (5.0, 1.0)
        >>> r.top_value.item(), r.top_position.item(), r.top_channel.item()
        (-4.0, 0, 1)
    """
    real = real.to(residual.device)
    d_model = residual.shape[-1]
    norm, token_max, medians = summary(residual, real)
    # the k largest entries lie in the k tokens with the largest maxima: no need to sort all of them
    n_tokens = min(k, residual.shape[1])
    tokens = token_max.masked_fill(~real, -1).topk(n_tokens, dim=1).indices  # NaN counts as largest
    candidates = _rows_at(residual.detach(), tokens).float().abs()
    candidates = candidates.masked_fill(~real.gather(1, tokens)[..., None], -1).flatten(1)
    largest = candidates.topk(min(k, candidates.shape[1]), dim=1)
    channel, position = largest.indices % d_model, tokens.gather(1, largest.indices // d_model)
    value = residual[torch.arange(len(residual), device=real.device)[:, None], position, channel].float()
    none = largest.values < 0
    missing = (0, k - none.shape[1])
    value, position, channel = (
        pad(column.masked_fill(none, fill), missing, value=fill)
        for column, fill in ((value, math.nan), (position, -1), (channel, -1))
    )
    return ResidualNorms(norm, token_max, medians, value, position, channel)


def _rows_at(x: Tensor, rows: Tensor) -> Tensor:
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
