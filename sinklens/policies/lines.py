"""Columns and diagonals of attention: what rules share that choose by them."""

from jaxtyping import Float
from torch import Tensor


def columns_and_diagonals(
    pattern: Float[Tensor, "head rows k_pos"], rows: Tensor, keys: Tensor, length: int
) -> tuple[Float[Tensor, "head k_pos"], Float[Tensor, "head distance"]]:
    """Attention of some rows summed by key, and by the distance of the key.

    Args:
        pattern: Attention weights of the rows.
        rows: Positions of the rows.
        keys: Positions of the keys.
        length: Distances to count, from 0.

    >>> import torch
    >>> pattern = torch.tensor([[[0.25, 0.75, 0.0], [0.5, 0.0, 0.5]]])
    >>> columns_and_diagonals(pattern, torch.tensor([1, 2]), torch.arange(3), 3)[1]
    tensor([[1.2500, 0.2500, 0.5000]])
    """
    distance = (rows[:, None] - keys).clamp(0, length - 1).expand_as(pattern).flatten(1)
    slashes = pattern.new_zeros(pattern.shape[0], length).scatter_add_(1, distance, pattern.flatten(1))
    return pattern.sum(1), slashes
