"""Secondary sinks: tokens whose residual state turns into the BOS's in middle layers, and that are attended to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Metric
from sinklens.detectors.bos_similarity import bos_cosine
from sinklens.detectors.sinks import EPS, MIN_QUERIES, sequence_importance
from sinklens.errors import InputError

COSINE = 0.9
GUARD = 5.0
MIN_LIFE, SHORT_SHARE, LONG_SHARE = 5, 0.25, 0.75
CANDIDATES = 2

METRIC = Metric(
    "secondary_sink",
    1,
    "Token s > b with cos(h_s, h_b) > 0.9 after a block while the BOS b carries its large norm (from the block of its "
    "largest growth, at least 5 times the usual step, up to the block of its largest fall); secondary if that lasts "
    "for 5 blocks or more (a quarter of a window below 20, at least 2) and less than 0.75 of the window, and some "
    "head's importance alpha_s exceeds 0.3 meanwhile.",
    "Wong et al. 2025, arXiv 2512.22213; signed cosine, relative lifetimes and the attention test differ, see the docs",
)

Label = Literal["secondary", "bos_sink", "noise", "aligned, not a sink", "aligned, not judged"]
COLUMNS = (
    "sequence", "position", "token", "first_layer", "last_layer", "life", "share", "cosine", "importance", "null",
    "importance_max", "label",
)  # fmt: skip
WINDOW_COLUMNS = ("sequence", "bos_position", "start", "end", "growth", "growth_ratio", "norm_peak", "n_aligned")
LAYER_COLUMNS = ("layer", "n_active", "n_aligned", "n_sequences")


class Window(NamedTuple):
    """Blocks ``start`` to ``end - 1`` after which the BOS carries its large norm."""

    start: int
    end: int


def sink_window(norms: Any, before: float | None = None, guard: float = GUARD) -> Window | None:
    """From which block to which the BOS carries its large norm.

    With ``n_l`` its norm after block l and ``D_l = n_{l+1} - n_l``: ``start = argmax_l D_l + 1`` and
    ``end = argmin_{l >= start} D_l + 1`` (exclusive), or the number of blocks if the norm never falls after ``start``.

    Args:
        norms: ``|h_b|`` after every block.
        before: ``|h_b|`` before the first block; then block 0 can be the start (the reference never looks there).
        guard: The largest step must be at least so many usual steps (the median ``|D_l|``, leaving out that step and
            the largest fall), else there is no window: the rule finds some largest step in gradual growth, too, and it
            would mean nothing.

    Returns:
        ``None`` without such a step.

    Raises:
        InputError: Not one norm for each block, or one that is negative or not finite.

    Source: Wong et al. 2025 and their code; guard, ``before`` and the open end added here.

    Example:
        >>> sink_window([1.0, 1.0, 500.0, 510.0, 505.0, 1.0])
        Window(start=2, end=5)
        >>> sink_window([1.0, 2.0, 3.0, 4.0, 5.0]) is None
        True
    """
    values = np.asarray(norms, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all() or (values < 0).any():
        raise InputError(f"Expected one norm for each block, got {np.array2string(values, threshold=6)}.")
    first = 0 if before is None else 1
    steps = np.diff(values if before is None else np.concatenate([[before], values]))
    growth, usual = _growth(steps)
    if not (growth > 0 and growth >= guard * usual):  # NaN, too
        return None
    start = int(steps.argmax()) + 1 - first
    falls = np.diff(values)[start:]
    if not len(falls) or falls.min() >= 0:
        return Window(start, len(values))
    return Window(start, start + int(falls.argmin()) + 1)


def _growth(steps: np.ndarray) -> tuple[float, float]:
    """Largest step, and the median size of the others but the largest fall, which ends a window; NaN without any."""
    if not len(steps):
        return math.nan, math.nan
    ends = [steps.argmax(), steps.argmin()] if steps.min() < 0 else [steps.argmax()]
    usual = np.abs(np.delete(steps, ends))
    return float(steps.max()), float(np.median(usual)) if len(usual) else math.nan


def lifetime_label(life: int, window: int) -> Literal["secondary", "bos_sink", "noise"]:
    """What to call a token that points along the BOS for ``life`` of the ``window`` blocks of the BOS's own life.

    The reference has literals, ``4 < life < L - 15`` for L blocks of the model, which makes everything a ``bos_sink``
    where L <= 15. Here ``noise`` is below 5 blocks (in a window under 20: below a quarter of it, and below 2), and
    ``bos_sink`` from 0.75 of the window on. That is within a block of the reference on the models it was made for
    (windows of 29 and 43 blocks of 36 and 48).

    Raises:
        InputError: ``life`` is not between 1 and ``window``.

    Example:
        >>> lifetime_label(3, 29), lifetime_label(18, 29), lifetime_label(27, 29), lifetime_label(2, 6)
        ('noise', 'secondary', 'bos_sink', 'secondary')
    """
    if not 1 <= life <= window:
        raise InputError(f"A lifetime must be from 1 to the window's {window} blocks, got {life}.")
    if life < max(2, min(MIN_LIFE, math.ceil(SHORT_SHARE * window))):
        return "noise"
    return "bos_sink" if life >= LONG_SHARE * window else "secondary"


@dataclass(frozen=True)
class SecondarySinks:
    """Tokens that take the BOS's direction.

    Attributes:
        table: One row per token that is aligned after at least one block of the window: ``first_layer``,
            ``last_layer``, ``life`` (number of such blocks, not necessarily in a row) and its ``share`` of the window;
            ``cosine`` (mean over its life); ``importance`` (mean attention it receives, over heads and its life,
            ``null`` for uniform attention) and ``importance_max`` (its strongest head); ``label``.
        windows: One row per sequence: ``bos_position``, ``start`` and ``end`` (exclusive; missing where no growth
            stands out: not applicable), ``growth`` (largest step of its norm) and ``growth_ratio`` to its usual step,
            ``norm_peak``, ``n_aligned`` tokens (NaN without a window).
        layers: Per block: ``n_active`` sequences whose window holds it, ``n_aligned`` tokens per such sequence (NaN
            without one), ``n_sequences``.
    """

    table: pd.DataFrame
    windows: pd.DataFrame
    layers: pd.DataFrame

    def to_dataframe(self) -> pd.DataFrame:
        """The table of tokens."""
        return self.table


class SecondarySinkDetector:
    """Collects tokens aligned with the BOS, and its norm, layer by layer; the window is known at the end.

    Labels: :func:`lifetime_label`, except that a token which no head gives more than ``eps`` during its life is
    ``"aligned, not a sink"``, and one with fewer than ``min_queries`` queries at or after it, or in a model without
    attention, ``"aligned, not judged"``.

    Args:
        cosine: Bound on the cosine (strict).
        absolute: Count tokens that point the opposite way as well, as the reference does.
        guard: As for :func:`sink_window`.
        candidates: Where a sequence does not start with the model's BOS, the position with the largest mean norm over
            blocks among the first so many stands in for it (the reference: 2, or 3 for chat models, BOS or not).
        eps: Threshold on importance.
        min_queries: As for the sink detector.

    Cost: O(candidates pos d_model) per layer, and memory for every aligned token and layer (in a model without a
    dominating direction few, at worst all).
    """

    needs = ("hidden",)

    def __init__(
        self,
        cosine: float = COSINE,
        *,
        absolute: bool = False,
        guard: float = GUARD,
        candidates: int = CANDIDATES,
        eps: float = EPS,
        min_queries: int = MIN_QUERIES,
    ) -> None:
        if not 0 < cosine < 1 or candidates < 1:
            raise InputError(f"Expected cosine between 0 and 1 and at least 1 candidate, got {cosine}, {candidates}.")
        self.settings = (cosine, absolute, guard, candidates, eps, min_queries)
        self.cosine, self.absolute, self.guard, self.candidates = cosine, absolute, guard, candidates
        self.eps, self.min_queries = eps, min_queries
        self._norms: list[_Columns] = []
        self._aligned: list[_Columns] = []

    def update(self, record: LayerRecord) -> None:
        """Take one layer; of the embedding output (-1) only the norm counts."""
        if record.hidden is None:
            return
        real = record.real.to(record.hidden.device)
        for position in range(min(self.candidates, real.shape[1])):
            norm = torch.linalg.vector_norm(record.hidden[:, position].float(), dim=-1)
            sequence = real[:, position].nonzero().flatten()
            columns = {"norm": norm[sequence], "sequence": sequence + record.first_sequence}
            columns["is_bos"] = record.batch.bos[:, position].to(sequence.device)[sequence]
            self._norms.append(_columns(columns, layer=record.layer, bos=position))
            if record.layer >= 0:
                self._aligned.append(self._find(record, record.hidden, position, real))

    def _find(self, record: LayerRecord, hidden: Tensor, bos: int, real: Tensor) -> "_Columns":
        """Tokens after ``bos`` that point along it."""
        cosine = bos_cosine(hidden, bos)
        size = cosine.abs() if self.absolute else cosine
        close = (size > self.cosine) & real
        close[:, : bos + 1] = False
        rows, places = (index.cpu() for index in close.nonzero(as_tuple=True))
        queries = record.batch.lengths.cpu()[rows] - places
        none = torch.full((len(rows),), math.nan)
        columns = {
            "sequence": rows + record.first_sequence,
            "position": places,
            "cosine": cosine.cpu()[rows, places],
            "queries": queries,
            "importance": none,
            "importance_max": none,
            "null": none,
        }
        if "mass" in record.attention and len(rows):
            alpha = sequence_importance(record)[0].cpu()[rows, :, places]
            null = record.attention["null_mass"].cpu()[rows, places] / queries
            columns |= {"importance": alpha.double().mean(1), "importance_max": alpha.amax(1), "null": null}
        tokens = [record.batch.tokens[r][p] for r, p in zip(rows.tolist(), places.tolist(), strict=True)]
        return _columns(columns, layer=record.layer, bos=bos) | {"token": np.array(tokens, dtype=object)}

    def merge(self, other: Self) -> None:
        """Add what a detector with the same settings saw of other sequences."""
        if self.settings != other.settings:
            raise InputError("Secondary-sink detectors with different settings cannot be merged.")
        self._norms += other._norms
        self._aligned += other._aligned

    def compute(self) -> SecondarySinks:
        """All tables; empty when no block was seen."""
        norms = _frame(self._norms)
        if norms.empty or not (norms["layer"] >= 0).any():
            return SecondarySinks(*(pd.DataFrame(columns=[*c]) for c in (COLUMNS, WINDOW_COLUMNS, LAYER_COLUMNS)))
        windows = self._windows(norms)
        aligned = _frame(self._aligned).merge(windows, on="sequence")
        inside = (aligned["layer"] >= aligned["start"]) & (aligned["layer"] < aligned["end"])
        aligned = aligned[inside & (aligned["bos"] == aligned["bos_position"])].sort_values("layer", kind="stable")
        counts = windows["sequence"].map(aligned.groupby("sequence")["position"].nunique()).fillna(0)
        windows["n_aligned"] = counts.where(windows["start"].notna(), math.nan).astype(float)
        rows = []
        for block in sorted(norms.loc[norms["layer"] >= 0, "layer"].unique()):
            active = int(((windows["start"] <= block) & (windows["end"] > block)).sum())
            found = int((aligned["layer"] == block).sum())
            rows.append((int(block), active, found / active if active else math.nan, len(windows)))
        return SecondarySinks(
            self._tokens(aligned),
            windows.astype({"start": "Int64", "end": "Int64"})[[*WINDOW_COLUMNS]],
            pd.DataFrame(rows, columns=[*LAYER_COLUMNS]),
        )

    def _windows(self, norms: pd.DataFrame) -> pd.DataFrame:
        """The BOS of each sequence and the window of its large norm (NaN without one)."""
        curves = norms.pivot(index=["sequence", "bos"], columns="layer", values="norm").sort_index()
        embedded = -1 in curves
        starts_with_bos = set(norms.loc[norms["is_bos"] & (norms["bos"] == 0), "sequence"])
        candidates: dict[int, list[tuple[float, int, np.ndarray]]] = {}
        for (sequence, bos), curve in zip(curves.index, curves.to_numpy(), strict=True):
            rank = math.inf if bos == 0 and sequence in starts_with_bos else float(curve[int(embedded) :].mean())
            candidates.setdefault(sequence, []).append((rank, bos, curve))
        rows = []
        for sequence, choices in candidates.items():
            _, bos, curve = max(choices, key=lambda choice: choice[0])
            norm = curve[int(embedded) :]
            growth, usual = _growth(np.diff(curve))
            window = sink_window(norm, float(curve[0]) if embedded else None, self.guard)
            start, end = window or (math.nan, math.nan)
            rows.append((sequence, bos, start, end, growth, growth / usual if usual > 0 else math.nan, norm.max()))
        return pd.DataFrame(rows, columns=[*WINDOW_COLUMNS[:-1]])

    def _tokens(self, aligned: pd.DataFrame) -> pd.DataFrame:
        """One row per token, from one row per token and block of its life."""
        tokens = aligned.groupby(["sequence", "position"]).agg(
            token=("token", "first"),
            first_layer=("layer", "min"),
            last_layer=("layer", "max"),
            life=("layer", "size"),
            cosine=("cosine", "mean"),
            importance=("importance", "mean"),
            null=("null", "mean"),
            importance_max=("importance_max", "max"),
            queries=("queries", "first"),
            window=("end", "first"),
            start=("start", "first"),
        )
        if tokens.empty:
            return pd.DataFrame(columns=[*COLUMNS])
        tokens["window"] = (tokens["window"] - tokens["start"]).astype(int)
        tokens["share"] = tokens["life"] / tokens["window"]
        tokens["label"] = [self._label(row) for row in tokens.itertuples()]
        return tokens.reset_index()[[*COLUMNS]]

    def _label(self, token: Any) -> Label:
        label: Label = lifetime_label(token.life, token.window)
        if label == "noise":
            return label
        if math.isnan(token.importance_max) or token.queries < self.min_queries:
            return "aligned, not judged"
        # in the precision it was measured in, so that it is strict like the sink rate
        above = np.float32(token.importance_max) > np.float32(self.eps)
        return label if above else "aligned, not a sink"


_Columns = dict[str, np.ndarray]


def _columns(tensors: dict[str, Tensor], **constants: int) -> _Columns:
    """Arrays of equal length; frames made for every layer would take longer than the measurement."""
    arrays: _Columns = {name: value.cpu().numpy() for name, value in tensors.items()}
    count = len(next(iter(arrays.values())))
    return arrays | {name: np.full(count, value) for name, value in constants.items()}


def _frame(parts: Sequence[_Columns]) -> pd.DataFrame:
    if not parts:
        return pd.DataFrame()
    frame = pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    return frame.astype(dict.fromkeys(frame.select_dtypes("float32").columns, np.float64))
