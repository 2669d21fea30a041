"""Numbers in few bits, and the rotation that spreads a large one over all channels first."""

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.errors import InputError


def quantised(x: Float[Tensor, "... channel"], bits: int, group_size: int = 0) -> Float[Tensor, "... channel"]:
    """``x`` rounded to ``2^bits`` levels between the smallest and the largest entry of each group of channels.

    The error is at most half a step.

    >>> quantised(torch.tensor([0.0, 0.4, 1.0]), 1)
    tensor([0., 0., 1.])
    """
    size = group_size or x.shape[-1]
    if x.shape[-1] % size:
        raise InputError(f"group_size must divide the {x.shape[-1]} channels of a head, got {size}.")
    groups = x.unflatten(-1, (-1, size))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    rounded: Tensor = (low + ((groups - low) / step).round() * step).flatten(-2)
    return rounded


def hadamard(size: int) -> Float[Tensor, "size size"]:
    """The orthogonal Hadamard matrix of a power of two.

    >>> (hadamard(2) * 2**0.5).round()
    tensor([[ 1.,  1.],
            [ 1., -1.]])
    """
    if size & (size - 1):
        raise InputError(f"A Hadamard matrix needs a power of two, and a head has {size} channels.")
    found: Tensor = torch.ones(1, 1)
    while len(found) < size:
        found = torch.cat((torch.cat((found, found), 1), torch.cat((found, -found), 1)))
    matrix: Tensor = found / size**0.5
    return matrix
