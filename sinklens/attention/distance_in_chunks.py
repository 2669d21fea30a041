"""Mean attention distance of blocks with hundreds of rows, to the last digits."""

import torch
from jaxtyping import Float
from torch import Tensor


def distance_in_chunks(
    pattern: Float[Tensor, "*head q_pos k_pos"], first_row: int, first_key: int, chunk: int = 64
) -> Float[Tensor, "*head q_pos"]:
    """Mean distance of every row, renormalised: sums over chunks of keys in fp32, of the chunks in fp64.

    A sum over thousands of keys in fp32, or one counted from a row that is not the own, loses the digits that near keys
    need. NaN for a row without any weight.

    Args:
        pattern: Weights, 0 at hidden keys.
        first_row: Position of the first row.
        first_key: Position of the first key.
        chunk: Keys that are summed in fp32.
    """
    extra = -pattern.shape[-1] % chunk
    padded = torch.nn.functional.pad(pattern, (0, extra)) if extra else pattern
    inside = torch.arange(chunk, device=pattern.device, dtype=torch.float32)
    mass, moment = (padded.unflatten(-1, (-1, chunk)) @ torch.stack([torch.ones_like(inside), inside], -1)).unbind(-1)
    mass, moment = mass.double(), moment.double()
    starts = first_key + chunk * torch.arange(mass.shape[-1], device=pattern.device)
    rows = first_row + torch.arange(pattern.shape[-2], device=pattern.device)[:, None]
    mean: Tensor = (mass * (rows - starts) - moment).sum(-1) / mass.sum(-1)
    return mean.float()
