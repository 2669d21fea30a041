"""Norms, medians and largest entries of the residual stream."""

import math

import numpy as np
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
    tops, medians, maxima = [], [], torch.full_like(norm, math.nan)
    for sequence in range(residual.shape[0]):
        hidden = residual[sequence].float()
        if not bool(real[sequence].all()):
            hidden = hidden[real[sequence]]
        magnitude = hidden.abs()
        maxima[sequence, real[sequence]] = magnitude.amax(-1)
        medians.append(lower_median(magnitude))
        largest = magnitude.flatten().topk(min(k, magnitude.numel())).indices
        missing = (0, k - len(largest))
        values = pad(hidden.flatten()[largest], missing, value=math.nan)
        where = (pad(index, missing, value=-1) for index in (largest // d_model, largest % d_model))
        tops.append((values, *where))
    # positions count among real tokens; with right padding that is the position itself
    value, position, channel = (torch.stack(column) for column in zip(*tops, strict=True))
    return ResidualNorms(norm, maxima, torch.stack(medians), value, position, channel)


def lower_median(values: Tensor) -> Tensor:
    """Median of all entries, the lower of the two middle ones for an even count, as torch.median.

    NaN for no entries. On a CPU through numpy's selection, which is about ten times faster than torch's.

    Example:
        >>> lower_median(torch.tensor([4.0, 1.0, 3.0, 2.0])).item()
        2.0
    """
    if values.device.type != "cpu" or values.numel() == 0:
        return values.flatten().median()
    if bool(values.isnan().any()):
        return torch.tensor(math.nan)
    middle = (values.numel() - 1) // 2
    return torch.tensor(float(np.partition(values.numpy().ravel(), middle)[middle]))
