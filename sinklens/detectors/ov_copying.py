"""Whether a head's output-value circuit raises the logit of the token it attends to."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sinklens.detectors.base import Metric

_CIRCUIT = (
    "the full circuit C = W_E W_V W_O W_U from token to token (norm gains folded in, biases and the positive scales of "
    "the norms left out, embedding alone as the source)"
)

EIGEN = Metric(
    "ov_eigen",
    1,
    f"sum Re(l) / sum |l| over the eigenvalues l of {_CIRCUIT}: 1 if every direction is copied, -1 if every one is "
    "negated, about 0 for random weights. NaN for a circuit that is 0.",
    "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits",
)
TOP1 = Metric(
    "ov_top1",
    1,
    f"Share of tokens t for which row t of {_CIRCUIT} is largest at t itself. Null: one in the vocabulary.",
    "standard; null added here",
)


def eigen_copying(
    w_v: Float[Tensor, "d_model d_value"],
    w_o: Float[Tensor, "d_value d_model"],
    back: Float[Tensor, "d_model d_model"],
) -> float:
    """Whether a head raises the logit of what it attends to: 1 for every direction, -1 if it lowers every one.

    ``sum Re(l) / sum |l|`` over the eigenvalues of ``W_E W_V W_O W_U``, in fp64.
    Those that are not 0 are the eigenvalues of the small ``W_O (W_U W_E) W_V``.

    Args:
        w_v: Value weights of the head.
        w_o: Output weights of the head.
        back: ``W_U W_E``, norm gains folded in; the same for all heads of a layer.

    Example:
        >>> eye = torch.eye(3)
        >>> eigen_copying(eye, eye, eye), eigen_copying(eye, -eye, eye)
        (1.0, -1.0)
    """
    values = torch.linalg.eigvals(w_o.double() @ back.double() @ w_v.double())
    size = float(values.abs().sum())
    return float(values.real.sum()) / size if size > 0 else math.nan


def top1_copying(
    w_e: Float[Tensor, "vocab d_model"],
    w_v: Float[Tensor, "d_model d_value"],
    w_o: Float[Tensor, "d_value d_model"],
    w_u: Float[Tensor, "d_model vocab"],
    tokens: Int[Tensor, " token"] | None = None,
    chunk: int = 256,
) -> float:
    """Share of tokens whose own logit is the largest that the circuit writes for them; a circuit that is 0 gives NaN.

    Args:
        w_e: Embedding, norm gains folded in.
        w_v: Value weights of the head.
        w_o: Output weights of the head.
        w_u: Unembedding, norm gains folded in.
        tokens: Which tokens to try; default: all.
        chunk: Tokens at a time, which bounds the memory by chunk x vocab.

    Example:
        >>> eye = torch.eye(4)
        >>> top1_copying(eye, eye, eye, eye), top1_copying(eye, eye, eye.roll(1, 0), eye)
        (1.0, 0.0)
    """
    tokens = torch.arange(len(w_e), device=w_e.device) if tokens is None else tokens.to(w_e.device)
    out, hits = w_o @ w_u, 0
    if len(tokens) == 0 or not bool(out.any()) or not bool(w_v.any()):
        return math.nan
    for part in tokens.split(chunk):
        hits += int(((w_e[part] @ w_v @ out).argmax(-1) == part).sum())
    return hits / len(tokens)
