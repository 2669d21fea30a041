"""Norms, medians and largest entries of the residual stream."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

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

    Cost: a few passes over ``residual``, one sequence at a time.

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
    norm = torch.linalg.vector_norm(residual, dim=-1, dtype=torch.float32).masked_fill(~real, math.nan)
    magnitude = residual.detach().float().abs()
    token_max = magnitude.amax(-1).masked_fill(~real, -1)
    # the k largest entries lie in the k tokens with the largest maxima: no need to sort all of them
    n_tokens = min(k, residual.shape[1])
    tokens = token_max.topk(n_tokens, dim=1).indices  # NaN counts as largest
    candidates = _rows_at(magnitude, tokens).masked_fill(~real.gather(1, tokens)[..., None], -1).flatten(1)
    largest = candidates.topk(min(k, candidates.shape[1]), dim=1)
    channel, position = largest.indices % d_model, tokens.gather(1, largest.indices // d_model)
    value = residual[torch.arange(len(residual), device=real.device)[:, None], position, channel].float()
    none = largest.values < 0
    missing = (0, k - none.shape[1])
    value, position, channel = (
        pad(column.masked_fill(none, fill), missing, value=fill)
        for column, fill in ((value, math.nan), (position, -1), (channel, -1))
    )
    whole = bool(real.all())
    medians = torch.stack([lower_median(m if whole else m[r]) for m, r in zip(magnitude, real, strict=True)])
    medians = medians.to(norm).masked_fill(token_max.isnan().any(1), math.nan)
    return ResidualNorms(norm, token_max.masked_fill(~real, math.nan), medians, value, position, channel)


def _rows_at(x: Tensor, rows: Tensor) -> Tensor:
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def lower_median(values: Tensor) -> Tensor:
    """Median of all entries, the lower middle one for an even count, as torch.median; NaN for no entries.

    May reorder ``values``: on a CPU numpy's selection in place is ten times faster than torch's and needs no copy, but
    takes NaN for large.
    """
    if values.device.type != "cpu" or values.numel() == 0:
        return values.flatten().median()
    flat = values.numpy().reshape(-1)
    middle = (flat.size - 1) // 2
    flat.partition(middle)
    return torch.tensor(float(flat[middle]))
