"""How likely a model finds given tokens."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def log_probs(logits: Float[Tensor, "*rows d_vocab"], ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """Log-probability of one token for each row of logits, in nats; in fp32 or better.

    Args:
        logits: Of any number of rows.
        ids: A token for each, on any device.

    >>> log_probs(torch.tensor([[0.0, 0.0], [0.0, 1e4]]), torch.tensor([0, 1]))
    tensor([-0.6931,  0.0000])
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    chances = logits.log_softmax(-1, dtype=exact)
    return chances.gather(-1, ids.to(logits.device)[..., None])[..., 0]
