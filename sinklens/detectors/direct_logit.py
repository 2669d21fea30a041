"""Direct logit attribution: what a head adds to a logit by its own write, with the final norm frozen."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.detectors.base import Metric
from sinklens.errors import UnsupportedArchitectureError

METRIC = Metric(
    name="direct_logit",
    version=1,
    definition="z_h W_O,h N W_U u at the predicting row, N the final norm as the linear map it is at that row's clean "
    "residual stream (scale frozen, mean taken out for LayerNorm, weight included), u what is read: the logit of the "
    "next token minus the mean of all logits, or of the right answer minus the wrong one; mean over rows of a "
    "sequence, then over sequences",
    source="Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; Nanda, TransformerLens, "
    "logit attribution with frozen LayerNorm",
)

TOLERANCE = 1e-4


@dataclass(frozen=True)
class FrozenNorm:
    """The final norm at given residual streams, as a linear map: ``norm(x) = weight (x - mean(x)) / scale + bias``.

    Attributes:
        weight: ``[d_model]``.
        bias: ``[d_model]``; zero for RMSNorm.
        centred: Whether the mean over channels is taken out (LayerNorm).
        scale: Divisor of each row, ``[*rows 1]``.
    """

    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool
    scale: Float[Tensor, "*rows 1"]

    def __call__(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """What a part of the residual stream becomes, without the bias."""
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        return self.weight * x / self.scale

    def pull_back(self, direction: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The direction before the norm whose product with any part is that of ``direction`` with the part after it.

        >>> norm = FrozenNorm(torch.tensor([1.0, 3.0]), torch.zeros(2), True, torch.tensor([2.0]))
        >>> x, read = torch.tensor([5.0, 1.0]), torch.tensor([1.0, 1.0])
        >>> (norm(x) @ read).item(), (x @ norm.pull_back(read)).item()
        (-2.0, -2.0)
        """
        pulled = self.weight * direction / self.scale
        return pulled - pulled.mean(-1, keepdim=True) if self.centred else pulled


def freeze_norm(
    norm: Callable[[Tensor], Tensor], residual: Float[Tensor, "*rows d_model"], normed: Float[Tensor, "*rows d_model"]
) -> FrozenNorm:
    """The linear map that a norm is at given rows, found by trying it; weights need not be known.

    Args:
        norm: The module: LayerNorm, RMSNorm or kin.
        residual: What enters it.
        normed: What leaves it.

    Raises:
        UnsupportedArchitectureError: The norm is no shift, scale by row and weight by channel.

    Example:
        >>> layer_norm = torch.nn.LayerNorm(4)
        >>> x = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
        >>> frozen = freeze_norm(layer_norm, x, layer_norm(x).detach())
        >>> frozen.centred, torch.allclose(frozen(x), layer_norm(x), atol=1e-4)
        (True, True)
    """
    width, like = residual.shape[-1], residual
    probe = torch.ones(width, dtype=like.dtype, device=like.device)
    probe[::2] = -1.0
    if width % 2:
        probe[-1] = 0.0  # so that its mean is 0
    with torch.no_grad():
        bias = norm(torch.zeros_like(probe)[None, None])[0, 0].float()
        plain, shifted = (norm((probe + shift)[None, None])[0, 0].float() for shift in (0.0, 0.5))
        centred = bool((plain - shifted).abs().max() < 1e-3 * (1e-6 + (plain - bias).abs().max()))
        weight = (plain - bias) * probe.float()
        if width % 2:  # the channel that the probe left out, from a probe that does not
            other = probe.roll(1)
            weight[-1] = ((norm(other[None, None])[0, 0].float() - bias) * other.float())[-1]
    x, y = residual.float(), normed.float() - bias
    part = weight * (x - x.mean(-1, keepdim=True) if centred else x)
    # the weight is known up to a factor that the scale takes up: least squares over the channels
    scale = part.square().sum(-1, keepdim=True) / (part * y).sum(-1, keepdim=True)
    frozen = FrozenNorm(weight, bias, centred, scale)
    gap = (frozen(x) - y).abs().max() / (1e-6 + y.abs().max())
    limit = 1e-3 if like.dtype in (torch.float32, torch.float64) else 5e-2
    if not gap <= limit:
        raise UnsupportedArchitectureError(
            f"The final norm {type(norm).__name__} is not linear once its scale is frozen (off by {float(gap):.1e} of "
            "its largest entry), so logits cannot be split into parts."
        )
    return frozen


def head_logits(
    z: Float[Tensor, "batch head pos d_value"],
    w_o: Float[Tensor, "head d_value d_model"],
    direction: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "batch head pos"]:
    """How much each head's write adds to a logit, in logits: high where it argues for what is read.

    ``z_h W_O,h . direction`` of every head and row, without writing out what heads add to the residual stream.

    Args:
        z: Head outputs.
        w_o: Output weights.
        direction: What is read at each row, pulled back before the final norm; 0 where nothing is.

    Cost: O(head pos d_value d_model) time, memory of one z.
    """
    read = torch.einsum("hdm,bpm->bhpd", w_o.float(), direction.float())
    contribution: Tensor = (z.float() * read).sum(-1)
    return contribution
