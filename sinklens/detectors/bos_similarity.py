"""How far every token's residual state points along the first token's: what two detectors share."""

from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from sinklens.capture.look import along

SMALLEST = 1e-12


def bos_cosine(
    hidden: Float[Tensor, "*batch pos d_model"], position: int = 0, length: Float[Tensor, "*batch pos"] | None = None
) -> Float[Tensor, "*batch pos"]:
    """Cosine of every token's residual state with that of one token, the BOS.

    ``cos_s = <h_BOS, h_s> / (|h_BOS| |h_s|)``, 1 at the BOS itself. A state of length zero has cosine 0 with
    everything, so that means and gradients stay finite.

    Args:
        hidden: Residual stream of one layer; half precision is widened to fp32.
        position: Where the BOS stands.
        length: The states' norms, where they are known already; NaN gives NaN.

    Source: Wong et al. 2025, arXiv 2512.22213; Anand et al. 2025, arXiv 2510.22603.

    Example:
        >>> import torch
        >>> bos_cosine(torch.tensor([[3.0, 0.0], [5.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, 0.0]])).tolist()
        [1.0, 1.0, 0.0, -1.0, 0.0]
    """
    wide = hidden if hidden.element_size() > 2 else hidden.float()
    length = (vector_norm(wide, dim=-1) if length is None else length).clamp(min=SMALLEST)
    bos = wide[..., position, :] / length[..., position, None]
    dots = along(wide.reshape(-1, *wide.shape[-2:]), bos.reshape(-1, bos.shape[-1])).view(length.shape)
    return (dots / length).clamp(-1, 1)
