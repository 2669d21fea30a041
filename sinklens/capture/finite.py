"""No number is taken from activations that are NaN or infinite."""

import torch
from torch import Tensor

from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch


def check_finite(norm: Tensor, rows: TokenBatch, layer: int, first_sequence: int, dtype: torch.dtype) -> None:
    """Stop at the first block whose residual stream is NaN or infinite at a real token.

    Args:
        norm: Norm of the residual stream per token, ``[batch pos]``.
        rows: The tokens.
        layer: Block index, -1 before the first.
        first_sequence: Number of row 0.
        dtype: Of the residual stream.

    Raises:
        InputError: One sentence that names block, sequence and token.
    """
    bad = ~torch.isfinite(norm.cpu()) & rows.real
    if not bool(bad.any()):
        return
    row, position = bad.nonzero()[0].tolist()
    where = "in the embedding" if layer < 0 else f"after block {layer}"
    advice = (
        "float16 ends at 65,504, which massive activations pass, so load the model with bfloat16 or float32"
        if dtype == torch.float16
        else "look for damaged weights, or an intervention that makes them so"
    )
    raise InputError(
        f"Activations are NaN or infinite {where}, first in sequence {first_sequence + row} at position {position} "
        f"({rows.tokens[row][position]!r}), and nothing can be said of such a run: {advice}."
    )
