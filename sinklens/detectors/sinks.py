"""Attention sinks: keys that receive far more attention than their share, at any position.

Definitions follow Gu et al., *When Attention Sink Emerges in Language Models* (ICLR 2025, arXiv 2410.10781), with
positions counted from 0.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.attention import ReceivedMass, StatisticFactory
from sinklens.attention.delta_logit import DeltaLogit
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector, LayerSums, Metric, frame_of, narrow
from sinklens.detectors.registry import register
from sinklens.detectors.sink_ranking import EPS as EPS
from sinklens.detectors.sinks_verdict import describe_sinks
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch
from sinklens.wording import several

EPS_SWEEP = (0.2, 0.3, 0.4, 0.5)
MIN_QUERIES = 10
MIN_SHARE = 0.125
SINK_HEAD_RATE = 0.5
SINK_HEAD_RATIO = 2.0
COLUMNS = (
    "layer", "head", "position", "importance", "sink_rate", "null", "ratio", "delta_logit", "n_sequences",
)  # fmt: skip
SWEEP_COLUMNS = ("layer", "head", "position", "eps", "sink_rate")

METRIC = Metric(
    "sink_score",
    1,
    "Importance of key k in one head and sequence of T tokens: alpha_k = (1/(T-k)) sum_{i>=k} A_ik, its mean attention "
    "over all queries at or after it (k from 0). Sink rate: share of sequences with alpha_k > eps (strict), taken per "
    "sequence and then averaged. Null: alpha_k if every query attended uniformly to the keys its layer's mask shows.",
    "Gu et al. 2025, arXiv 2410.10781, section 3; null added here",
)
DELTA_LOGIT = Metric(
    "delta_logit",
    1,
    "Mean over queries i that see key k and another key of s_ik - mean_{j != k} s_ij, with pre-softmax scores s "
    "(logits).",
    "Guo et al. 2024, arXiv 2410.13835; j = i is kept here",
)


def importance(pattern: Any) -> Float[Tensor, "*batch head k_pos"]:
    """How much attention each token gets on average from itself and all tokens after it: near 1 for a sink.

    ``alpha_k = (1/(T-k)) sum_{i=k}^{T-1} A_ik`` (positions from 0).

    For k = 0 this is the mean over all T rows, the first included, so ``1/T <= alpha_0 <= 1`` for a causal softmax.
    Rows before k are taken to be 0, as a causal mask makes them.

    Args:
        pattern: Attention weights ``[..., head, q_pos, k_pos]``, a tensor or anything numpy can read.

    Returns:
        ``[..., head, k_pos]`` in fp32, or fp64 for an fp64 tensor or array.

    Raises:
        InputError: Not square, empty, or holding NaN.

    Reference:
        Gu et al. 2025, section 3.2.

    Example:
        >>> importance([[[1.0, 0.0], [0.6, 0.4]]])
        tensor([[0.8000, 0.4000]])
    """
    weights = pattern if isinstance(pattern, Tensor) else torch.as_tensor(np.asarray(pattern))
    if weights.ndim < 2 or weights.shape[-1] != weights.shape[-2] or weights.shape[-1] == 0:
        raise InputError(f"Expected square patterns [..., head, q_pos, k_pos], got shape {tuple(weights.shape)}.")
    wide = weights.dtype == torch.float64 and isinstance(pattern, Tensor | np.ndarray)
    weights = weights.to(torch.float64 if wide else torch.float32)
    if bool(weights.isnan().any()):
        raise InputError("The pattern holds NaN; expected attention weights with 0 at masked keys.")
    length = weights.shape[-1]
    queries = length - torch.arange(length, device=weights.device)
    return weights.sum(-2) / queries


def sink_rate(alpha: Any, eps: float = EPS) -> Float[Tensor, "head k_pos"]:
    """In how many of the texts a token is a sink, as a share: those whose importance ``alpha_k`` exceeds ``eps``.

    ``Sink_k^eps`` of the paper; the comparison is strict.

    The indicator is taken per sequence and then averaged, as in the authors' code; it is not the indicator of the
    mean. Average the result over heads and layers for the model-wide figure of the paper.

    Args:
        alpha: Importance ``[..., head, k_pos]``; all leading axes count as sequences. NaN where a sequence does not
            reach: it is then left out.
        eps: Threshold, 0.3 in the paper.

    Returns:
        ``[head, k_pos]``, between 0 and 1; NaN at a key that no sequence reaches.

    Warns:
        UserWarning: The sequences are so short that uniform attention itself gives key 0 more than ``eps``
            (fewer than 10 tokens for eps = 0.3).

    Example:
        >>> sink_rate(torch.tensor([[[0.2] + [0.0] * 63], [[0.5] + [0.0] * 63]]))[0, 0].item()
        0.5
    """
    alpha = alpha if isinstance(alpha, Tensor) else torch.as_tensor(np.asarray(alpha))
    if alpha.ndim < 2 or alpha.shape[-1] == 0:
        raise InputError(f"Expected importance [..., head, k_pos], got shape {tuple(alpha.shape)}.")
    _check_eps(eps)
    length = alpha.shape[-1]
    floor = float(uniform_importance(length)[0])
    if floor > eps:
        warnings.warn(
            f"With {several(length, 'token')} uniform attention already gives key 0 an importance of {floor:.3f} > "
            f"eps={eps}; use at least {several(shortest_length(eps), 'token')}.",
            stacklevel=2,
        )
    sequences: Tensor = alpha.reshape(-1, *alpha.shape[-2:])
    return (sequences > eps).sum(0) / (~sequences.isnan()).sum(0)


def uniform_importance(length: int) -> Float[Tensor, " k_pos"]:
    """Importance of every key under uniform causal attention, ``(H_T - H_k) / (T - k)`` with harmonic numbers H.

    Example:
        >>> round(uniform_importance(64)[0].item(), 5)
        0.07412
    """
    shares = 1 / torch.arange(1, length + 1, dtype=torch.float64)
    tail = shares.flip(0).cumsum(0).flip(0)
    return (tail / (length - torch.arange(length))).float()


def shortest_length(eps: float = EPS) -> int:
    """Fewest tokens for which uniform attention stays at or below ``eps`` at key 0 (10 for eps = 0.3).

    Example:
        >>> shortest_length(0.3)
        10
    """
    _check_eps(eps)
    length, harmonic = 1, 1.0
    while harmonic / length > eps:
        length += 1
        harmonic += 1 / length
    return length


@register
class SinkDetector(Detector):
    """How much attention each token gets from all tokens after it, by head: near 1 where they look at it alone.

    Tables: ``sinks``, one row per layer, head and position: ``importance`` and ``sink_rate`` (means over sequences that
    reach the position), ``null``, ``ratio`` = importance / null, ``delta_logit`` (mean pre-softmax margin of the key
    over the others), ``n_sequences``. ``sink_heads``, one row per head: its strongest key among those with at least
    ``min_queries`` queries, and an eighth of the sequence, at or after them in at least half of the sequences (a head
    that looks at a fixed offset gives every key the mass of one query, so with ten queries that is at most 0.1).
    ``eps_sweep``: sink rate at the strongest key and at key 0 for other thresholds.

    Args:
        eps: Threshold of the sink rate.
        eps_sweep: Thresholds of the sweep.
        min_queries: Keys with fewer queries at or after them are left out when the strongest key is chosen.
        min_share: So are keys with fewer than this share of the sequence's queries at or after them: late keys of
            a head that looks nearby have a high mean over few queries without being a sink.

    Cost: O(heads k_pos) fp64 numbers per layer.
    """

    name = "sinks"
    metrics = (METRIC, DELTA_LOGIT)
    beside = ("visible_sinks", "attention_summary")
    by_default = True
    rank = 10

    def __init__(
        self,
        eps: float = EPS,
        eps_sweep: Sequence[float] = EPS_SWEEP,
        min_queries: int = MIN_QUERIES,
        min_share: float = MIN_SHARE,
    ) -> None:
        self.eps = eps
        self.thresholds = tuple(dict.fromkeys((eps, *eps_sweep)))
        for threshold in self.thresholds:
            _check_eps(threshold)
        self.min_queries, self.min_share = min_queries, min_share
        self._sums = LayerSums()

    def statistics(self, batch: TokenBatch) -> Sequence[StatisticFactory]:
        """Attention received, and the margin of the key's logit."""
        return [ReceivedMass, DeltaLogit]

    def update(self, record: LayerRecord) -> None:
        """Take one layer; layers without attention are not applicable and left out."""
        if "mass" not in record.attention:
            return
        alpha, reached = sequence_importance(record)
        queries = _queries_after(record).to(alpha.device)
        null = (record.attention["null_mass"] / queries.clamp(min=1)).masked_fill(~reached, 0)
        enough = (record.batch.lengths[:, None] * self.min_share).clamp(min=self.min_queries).to(queries.device)
        eligible = reached & (queries >= enough)
        above = torch.stack([alpha > threshold for threshold in self.thresholds]) & reached[:, None]
        above = above.double().masked_fill(alpha.isnan(), torch.nan)  # an overflow is no answer, not a "no"
        delta = record.attention.get("delta_logit", torch.full_like(alpha, torch.nan))
        finite = delta.isfinite() & reached[:, None]
        sums = {
            "alpha": alpha.double().sum(0),
            "above": above.double().sum(1),
            "count": reached.double().sum(0),
            "null": null.double().sum(0),
            "eligible": eligible.double().sum(0),
            "eligible_alpha": (alpha * eligible[:, None]).double().sum(0),
            "delta": delta.masked_fill(~finite, 0).double().sum(0),
            "delta_count": finite.double().sum(0),
            "sequences": torch.full((1,), float(len(record.batch))),
        }
        for name, value in sums.items():
            self._sums.add(record.layer, name, value)

    def merge(self, other: Self) -> None:
        """Add what a detector with the same thresholds saw of other sequences."""
        self.check_settings(other)
        self._sums.merge(other._sums)

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables; empty when no layer has attention."""
        parts = [self._layer(layer, sums) for layer, sums in self._sums.arrays()]
        tables, strongest, sweeps = zip(*parts, strict=True) if parts else ((), (), ())
        return {
            "sinks": frame_of(tables, COLUMNS, spend=True),
            "sink_heads": frame_of([part for part in strongest if len(part["head"])], COLUMNS),
            "eps_sweep": frame_of(sweeps, SWEEP_COLUMNS),
        }

    def verdict(self, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[str]:
        """Which positions are sinks, for which heads and in which layers."""
        return describe_sinks(tables["heads"], tables["tokens"], settings) if "heads" in tables else []

    def _layer(self, layer: int, s: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Columns of the layer's rows in each table."""
        heads, positions = s["alpha"].shape
        count = np.where(s["count"] > 0, s["count"], np.nan)
        alpha, null = s["alpha"] / count, s["null"] / count
        rates = s["above"] / count
        ratio = alpha / np.where(null > 0, null, np.nan)
        delta = s["delta"] / np.where(s["delta_count"] > 0, s["delta_count"], np.nan)
        head_index, position_index = np.divmod(np.arange(heads * positions), positions)
        table = {
            "layer": np.full(heads * positions, layer),
            "head": head_index,
            "position": position_index,
            "importance": alpha.ravel(),
            "sink_rate": rates[0].ravel(),
            "null": np.tile(null, heads),
            "ratio": ratio.ravel(),
            "delta_logit": delta.ravel(),
            "n_sequences": np.tile(s["count"].astype(int), heads),
        }
        allowed = s["eligible"] >= max(1, s["sequences"][0] / 2)
        with np.errstate(invalid="ignore"):
            score = np.where(allowed, s["eligible_alpha"] / np.where(s["eligible"] > 0, s["eligible"], np.nan), -1)
        best = score.argmax(1) if allowed.any() else np.zeros(heads, dtype=int)
        own = np.arange(heads) * positions + best if allowed.any() else np.zeros(0, dtype=int)
        strongest = {name: values[own] for name, values in table.items()}
        places = np.unique(np.concatenate([np.arange(heads) * positions, np.arange(heads) * positions + best]))
        order = np.argsort(self.thresholds)
        head, position = np.divmod(places, positions)
        sweep = {
            "layer": layer,
            "head": np.repeat(head, len(order)),
            "position": np.repeat(position, len(order)),
            "eps": np.tile(np.array(self.thresholds)[order], len(places)),
            "sink_rate": rates[order][:, head, position].T.ravel(),
        }
        return narrow(table), strongest, sweep


def sequence_importance(record: LayerRecord) -> tuple[Tensor, Tensor]:
    """``alpha [batch head k_pos]`` of every sequence (0 beyond its end) and which positions it reaches."""
    mass = record.attention["mass"]
    reached = record.real.to(mass.device)
    queries = _queries_after(record).to(mass.device)
    return (mass / queries.clamp(min=1)[:, None]).masked_fill(~reached[:, None], 0), reached


def _check_eps(eps: float) -> None:
    if not 0 < eps < 1:
        raise InputError(f"eps must lie between 0 and 1, got {eps}.")


def _queries_after(record: LayerRecord) -> Tensor:
    """Queries at or after each position of each sequence, T - k."""
    positions = torch.arange(record.real.shape[1])
    return record.batch.lengths[:, None] - positions[None]
