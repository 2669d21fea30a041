"""Compression of representations: how few directions the residual states of a sequence fill, with and without row 0."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector, Metric
from sinklens.detectors.registry import register
from sinklens.errors import InputError

ENTROPY = Metric(
    "matrix_entropy",
    1,
    "S = -sum_j p_j ln p_j in nats with p_j = sigma_j^2 / |X|_F^2, sigma_j the singular values of the residual states "
    "X [pos d_model] of one sequence (not centred), averaged over sequences; with row 0 and without it. Null: "
    "ln min(pos, d_model), what orthogonal states of equal length give.",
    "Queipo-de-Llano et al. 2025, arXiv 2510.06477; the part without row 0 and the null added here",
)
ANISOTROPY = Metric(
    "anisotropy",
    1,
    "p_1 = sigma_1^2 / |X|_F^2, the share of the strongest direction; with row 0 and without it.",
    "Queipo-de-Llano et al. 2025, arXiv 2510.06477",
)

COLUMNS = (
    "layer", "entropy", "entropy_null", "entropy_others", "entropy_others_null", "anisotropy", "anisotropy_others",
    "first_share", "entropy_bound", "anisotropy_bound", "n_sequences",
)  # fmt: skip
SEQUENCE_COLUMNS = ("sequence", *(name for name in COLUMNS if name != "n_sequences"))


def spectrum(hidden: Any, first_row: bool = True) -> Float[Tensor, "*batch rank"]:
    """How much of the rows' squared length lies along each direction, the largest share first; they sum to 1.

    ``p_j = sigma_j^2 / |X|_F^2`` with the singular values ``sigma_j`` of the matrix.

    From the eigenvalues of the smaller Gram matrix, ``X X^T [pos pos]`` or ``X^T X [d_model d_model]``, in fp64 and
    clamped at 0: the squared singular values, much cheaper than the singular value decomposition.

    Args:
        hidden: Residual states ``[..., pos, d_model]`` of one sequence each, a tensor or anything numpy can read.
        first_row: Whether position 0 takes part.

    Returns:
        ``[..., min(pos, d_model)]``; NaN for states that are all zero, and of width 0 when no row is left.

    Raises:
        InputError: Fewer than two axes, or nothing in them.

    Cost: O(pos d_model min(pos, d_model)) for the Gram matrix and O(min(pos, d_model)^3) for its eigenvalues.

    Example:
        >>> spectrum([[2.0, 0.0], [0.0, 1.0]]).tolist()
        [0.8, 0.2]
    """
    rows = _matrix(hidden)[..., 0 if first_row else 1 :, :]
    return _shares(_gram(rows))


def matrix_entropy(hidden: Any, first_row: bool = True) -> Float[Tensor, "*batch"]:
    """Over how many directions the rows spread: 0 nats for one, ``ln min(pos, d)`` at most, for all of them alike.

    ``S = -sum_j p_j ln p_j`` with the shares ``p_j`` of :func:`spectrum`.

    One huge row alone makes it small, so a low value says "row 0 is big" unless it is low without row 0 as well.

    Example:
        >>> round(matrix_entropy([[2.0, 0.0], [0.0, 1.0]]).item(), 4)  # of sigma^2; with sigma it would be 0.6365
        0.5004
    """
    return _entropy(spectrum(hidden, first_row))


def anisotropy(hidden: Any, first_row: bool = True) -> Float[Tensor, "*batch"]:
    """Share ``p_1`` of the strongest direction; NaN when no row is left.

    Example:
        >>> anisotropy([[2.0, 0.0], [0.0, 1.0]]).item()
        0.8
    """
    return _largest(spectrum(hidden, first_row))


@dataclass(frozen=True)
class Inequality:
    """Both sides of what a large row 0 forces on the spectrum, ``[...]`` each.

    With ``M = |x_0|^2``, ``R = sum_{i>0} |x_i|^2``, ``c = M / R``, ``alpha = (1/R) sum_{i>0} |x_i|^2 cos^2(x_i, x_0)``:

    - ``sigma_1^2 >= M + alpha R``;
    - ``p_1 >= p`` with ``p = (c + alpha) / (c + 1)``;
    - ``S <= -p ln p - (1-p) ln(1-p) + (1-p) ln(r-1)`` with ``r = min(pos, d_model)`` where ``p >= 1/r``; below that the
      theorem says nothing and the bound is the trivial ``S <= ln r``.

    Attributes:
        top: ``sigma_1^2``.
        top_bound: ``M + alpha R``, from below.
        anisotropy: ``p_1``.
        anisotropy_bound: ``p``, from below.
        entropy: ``S`` in nats.
        entropy_bound: From above.
        first_share: ``M / (M + R)``, the part of row 0 in the squared length of all rows.
    """

    top: Float[Tensor, "*batch"]
    top_bound: Float[Tensor, "*batch"]
    anisotropy: Float[Tensor, "*batch"]
    anisotropy_bound: Float[Tensor, "*batch"]
    entropy: Float[Tensor, "*batch"]
    entropy_bound: Float[Tensor, "*batch"]
    first_share: Float[Tensor, "*batch"]

    def holds(self, tolerance: float = 1e-9) -> bool:
        """Whether all three hold everywhere, up to rounding; NaN on either side is not applicable and passes."""
        slack = tolerance * self.top.abs()
        broken = (self.top < self.top_bound - slack).any() | (self.anisotropy < self.anisotropy_bound - tolerance).any()
        return not bool(broken | (self.entropy > self.entropy_bound + tolerance).any())


def compression_inequality(hidden: Any) -> Inequality:
    """Both sides of the theorem that ties a residual peak at row 0 to low matrix entropy.

    It holds for every matrix (take the direction of ``x_0``: ``sigma_1^2 >= |X u|^2``), so it checks the computation,
    and shows how much of a compression valley the length of row 0 explains: all of it where the sides meet.

    Args:
        hidden: Residual states ``[..., pos, d_model]`` of one sequence each.

    Returns:
        See :class:`Inequality`; NaN where row 0 is zero, or all rows are.

    Raises:
        InputError: Fewer than two axes, or nothing in them.

    Source: Queipo-de-Llano et al. 2025, arXiv 2510.06477; derived again here. ``r`` is ``min(pos, d_model)`` and not
    the rank, which rounding leaves undefined; the bound is at most looser for it.

    Example:
        >>> sides = compression_inequality([[3.0, 0.0], [0.0, 1.0]])
        >>> sides.top.item(), sides.top_bound.item(), sides.anisotropy_bound.item()
        (9.0, 9.0, 0.9)
    """
    rows = _matrix(hidden).double()
    return _sides(rows, _shares(_gram(rows)))


def _sides(rows: Float[Tensor, "*batch pos d_model"], shares: Float[Tensor, "*batch rank"]) -> Inequality:
    squares = (rows**2).sum(-1)
    first, total = squares[..., 0], squares.sum(-1)
    unit = rows[..., 0, :] / first.sqrt()[..., None]
    along = ((rows @ unit[..., None])[..., 0] ** 2).sum(-1)  # M + alpha R
    p, r = along / total, shares.shape[-1]
    bound = torch.special.entr(p) + torch.special.entr((1 - p).clamp(min=0))
    bound = bound + ((1 - p) * math.log(r - 1) if r > 1 else 0)
    top = _largest(shares)
    return Inequality(
        top=top * total,
        top_bound=along,
        anisotropy=top,
        anisotropy_bound=p,
        entropy=_entropy(shares),
        entropy_bound=torch.where(p < 1 / r, math.log(r), bound),
        first_share=first / total,
    )


@register
class CompressionDetector(Detector):
    """How few directions the residual states of a text fill in each layer: entropy near 0, anisotropy near 1 mean one.

    Tables: ``compression``, one row per layer (-1 = before the first layer), means over sequences: ``entropy`` in nats
    with ``entropy_null`` = ln min(pos, d_model) and ``entropy_bound`` (from above, by :class:`Inequality`),
    ``entropy_others`` and ``entropy_others_null`` without row 0; ``anisotropy`` with ``anisotropy_bound`` (from below),
    ``anisotropy_others``; ``first_share``, the part of row 0 in the squared length; ``n_sequences``.
    ``compression_sequences``: the same for every sequence.

    Cost: two eigenvalue problems of size min(pos, d_model) for each layer and sequence.
    """

    name = "compression"
    metrics = (ENTROPY, ANISOTROPY)
    needs = ("hidden",)
    rank = 95

    def __init__(self) -> None:
        self._frames: list[pd.DataFrame] = []

    def update(self, record: LayerRecord) -> None:
        """Take one layer; -1 is the embedding output."""
        if record.hidden is None:
            return
        lengths = record.batch.lengths
        for length in lengths.unique().tolist():
            index = (lengths == length).nonzero().flatten()
            rows = record.hidden[index.to(record.hidden.device), :length].double()
            sequence = index.numpy() + record.first_sequence
            self._frames.append(_measure(rows).assign(layer=record.layer, sequence=sequence))

    def merge(self, other: Self) -> None:
        """Add what another detector saw of other sequences."""
        self._frames += other._frames

    def tables(self) -> dict[str, pd.DataFrame]:
        """Both tables."""
        if not self._frames:
            empty = pd.DataFrame(columns=[*COLUMNS]), pd.DataFrame(columns=[*SEQUENCE_COLUMNS])
            return {"compression": empty[0], "compression_sequences": empty[1]}
        rows = pd.concat(self._frames, ignore_index=True)[[*SEQUENCE_COLUMNS]]
        rows = rows.sort_values(["sequence", "layer"], ignore_index=True)
        grouped = rows.drop(columns="sequence").groupby("layer")
        table = grouped.mean().assign(n_sequences=grouped.size()).reset_index()
        return {"compression": table[[*COLUMNS]], "compression_sequences": rows}


def _measure(rows: Float[Tensor, "batch pos d_model"]) -> pd.DataFrame:
    """One row per sequence."""
    others = rows[:, 1:]
    wide = others.shape[1] < rows.shape[2]  # else add row 0 to the Gram matrix of the others: no row is read twice
    gram = _gram(rows) if wide else None
    gram_others = gram[:, 1:, 1:] if gram is not None else _gram(others)
    if gram is None:
        gram = gram_others + rows[:, 0, :, None] * rows[:, 0, None, :]
    without = _shares(gram_others)
    sides = _sides(rows, _shares(gram))
    columns = {
        "entropy": sides.entropy,
        "entropy_null": torch.full_like(sides.entropy, math.log(min(rows.shape[1:]))),
        "entropy_others": _entropy(without),
        "entropy_others_null": torch.full_like(sides.entropy, _log(min(others.shape[1:]))),
        "anisotropy": sides.anisotropy,
        "anisotropy_others": _largest(without),
        "first_share": sides.first_share,
        "entropy_bound": sides.entropy_bound,
        "anisotropy_bound": sides.anisotropy_bound,
    }
    return pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})


def _matrix(hidden: Any) -> Tensor:
    rows = hidden if isinstance(hidden, Tensor) else torch.as_tensor(np.asarray(hidden, dtype=np.float64))
    if rows.ndim < 2 or rows.shape[-1] * rows.shape[-2] == 0:
        raise InputError(f"Expected hidden states [..., pos, d_model], got shape {tuple(rows.shape)}.")
    return rows


def _gram(rows: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch rank rank"]:
    rows = rows.double()
    flat = rows if rows.shape[-2] <= rows.shape[-1] else rows.transpose(-1, -2)
    product: Tensor = flat @ flat.transpose(-1, -2)
    return product


def _shares(gram: Float[Tensor, "*batch rank rank"]) -> Float[Tensor, "*batch rank"]:
    squares = torch.linalg.eigvalsh(gram).clamp(min=0).flip(-1)
    shares: Tensor = squares / squares.sum(-1, keepdim=True)
    return shares


def _entropy(shares: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch"]:
    if shares.shape[-1] == 0:
        return shares.new_full(shares.shape[:-1], math.nan)
    entropy: Tensor = torch.special.entr(shares).sum(-1)
    return entropy


def _largest(shares: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch"]:
    return shares[..., 0] if shares.shape[-1] else shares.new_full(shares.shape[:-1], math.nan)


def _log(count: int) -> float:
    return math.log(count) if count else math.nan
