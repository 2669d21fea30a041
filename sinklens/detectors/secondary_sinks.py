"""Secondary sinks: tokens whose residual state turns into the BOS's in middle layers, and that are attended to."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sinklens.attention import ReceivedMass, StatisticFactory
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector, Metric, frame_of, means
from sinklens.detectors.bos_similarity import bos_cosine
from sinklens.detectors.registry import register
from sinklens.detectors.secondary_sinks_verdict import describe_secondary
from sinklens.detectors.sinks import EPS, MIN_QUERIES, sequence_importance
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch
from sinklens.wording import several

COSINE = 0.9
LARGE = 3.0
SHARED = 0.5
MIN_LIFE, SHORT_SHARE, LONG_SHARE = 5, 0.25, 0.75
CANDIDATES = 2

METRIC = Metric(
    "secondary_sink",
    2,
    "Token s > b with cos(h_s, h_b) > 0.9 after a layer while the BOS b carries a large norm: in its windows, maximal "
    "runs of layers after which |h_b| is at least 3 times the median norm of the other tokens. Layers after which half "
    "of the later tokens or more point along the BOS do not count: there it is the direction that is shared. Secondary "
    "if that lasts for 5 layers or more (a quarter of the windows where they have under 20, at least 2) and less than "
    "0.75 of the windows, and some head's importance alpha_s exceeds 0.3 meanwhile.",
    "after Wong et al. 2025, arXiv 2512.22213, who have one window between the largest growth and the largest fall of "
    "the norm, literal lifetimes and no test of attention; see the docs",
)

Label = Literal["secondary", "bos_sink", "noise", "aligned, not a sink", "aligned, not judged"]
COLUMNS = (
    "sequence", "position", "token", "first_layer", "last_layer", "life", "share", "cosine", "importance", "null",
    "importance_max", "label",
)  # fmt: skip
WINDOW_COLUMNS = (
    "sequence", "bos_position", "window", "start", "end", "ratio", "norm_peak", "n_aligned", "n_shared",
)  # fmt: skip
TABLES = ("secondary_sinks", "secondary_windows", "secondary_layers")
LAYER_COLUMNS = ("layer", "n_active", "n_aligned", "n_sequences")


class Window(NamedTuple):
    """Layers ``start`` to ``end - 1`` after which the BOS carries its large norm."""

    start: int
    end: int


def sink_windows(norms: Any, others: Any, large: float = LARGE) -> list[Window]:
    """From which layers to which the BOS carries its large norm; it may come back.

    Maximal runs of layers with ``n_l >= large * m_l``: ``n_l`` is its norm after layer l, ``m_l`` the other tokens'.
    Wong et al. take one window, from the largest growth of ``n`` to the largest fall after it. That finds the second of
    SmolLM2's two windows alone (layers 11 to 28, after 2 to 8), and with a guard against gradual growth none in
    Gemma-3-270M, whose BOS grows in eight steps.

    Args:
        norms: ``|h_b|`` after every layer.
        others: Typical norm of the other tokens after every layer.
        large: How many times the others' it must be.

    Raises:
        InputError: Not one norm for each layer, or one that is negative or not finite.

    Example:
        >>> sink_windows([1.0, 9.0, 9.0, 1.0, 500.0, 1.0], [1.0] * 6)
        [Window(start=1, end=3), Window(start=4, end=5)]
        >>> sink_windows([1.0, 2.0], [1.0, 1.0])
        []
    """
    values, rest = np.asarray(norms, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all() or (values < 0).any():
        raise InputError(f"Expected one norm for each layer, got {np.array2string(values, threshold=6)}.")
    if rest.shape != values.shape:
        raise InputError(f"Expected the others' norm for each of {len(values)} layers, got {rest.shape}.")
    inside = np.concatenate([[False], (values >= large * rest) & (values > 0), [False]]).astype(int)
    edges = np.diff(inside)
    return [
        Window(int(at), int(to)) for at, to in zip((edges == 1).nonzero()[0], (edges == -1).nonzero()[0], strict=True)
    ]


def lifetime_label(life: int, window: int) -> Literal["secondary", "bos_sink", "noise"]:
    """What to call a token that points along the BOS for ``life`` of the ``window`` layers of the BOS's own life.

    The reference has literals, ``4 < life < L - 15`` for L layers of the model, which makes everything a ``bos_sink``
    where L <= 15. Here ``noise`` is below 5 layers (in a window under 20: below a quarter of it, and below 2), and
    ``bos_sink`` from 0.75 of the window on. That is within a layer of the reference on the models it was made for
    (windows of 29 and 43 layers of 36 and 48).

    Raises:
        InputError: ``life`` is not between 1 and ``window``.

    Example:
        >>> lifetime_label(3, 29), lifetime_label(18, 29), lifetime_label(27, 29), lifetime_label(2, 6)
        ('noise', 'secondary', 'bos_sink', 'secondary')
    """
    if not 1 <= life <= window:
        raise InputError(f"A lifetime must be from 1 to the window's {several(window, 'layer')}, got {life}.")
    if life < max(2, min(MIN_LIFE, math.ceil(SHORT_SHARE * window))):
        return "noise"
    return "bos_sink" if life >= LONG_SHARE * window else "secondary"


@register
class SecondarySinkDetector(Detector):
    """Tokens whose residual state comes to point where the BOS's does, for how many layers, and who attends to them.

    Tables: ``secondary_sinks``, one row per token that is aligned after at least one layer of the window:
    ``first_layer``, ``last_layer``, ``life`` (number of such layers, not necessarily in a row) and its ``share`` of the
    window; ``cosine`` (mean over its life); ``importance`` (mean attention it receives, over heads and its life,
    ``null`` for uniform attention) and ``importance_max`` (its strongest head); ``label``. ``secondary_windows``, one
    row per window of a sequence, one for a sequence without: ``bos_position``, ``window`` (from 0), ``start`` and
    ``end`` (exclusive; missing without a window: not applicable), ``ratio`` (the largest of its norm to the other
    tokens'), ``norm_peak``, ``n_aligned`` tokens and ``n_shared`` layers that do not count because half of the tokens
    or more are aligned (NaN without a window). ``secondary_layers``, per layer: ``n_active`` sequences whose window
    holds it, ``n_aligned`` tokens per such sequence (NaN without one), ``n_sequences``.

    Labels: :func:`lifetime_label`, except that a token which no head gives more than ``eps`` during its life is
    ``"aligned, not a sink"``, and one with fewer than ``min_queries`` queries at or after it, or in a model without
    attention, ``"aligned, not judged"``.

    Args:
        cosine: Bound on the cosine (strict).
        absolute: Count tokens that point the opposite way as well, as the reference does.
        large: As for :func:`sink_windows`.
        candidates: Where a sequence does not start with the model's BOS, the position with the largest mean norm over
            layers among the first so many stands in for it (the reference: 2, or 3 for chat models, BOS or not).
        eps: Threshold on importance.
        min_queries: As for the sink detector.

    Cost: O(candidates pos d_model) per layer, and memory for every aligned token and layer (in a model without a
    dominating direction few, at worst all).
    """

    name = "secondary_sinks"
    metrics = (METRIC,)
    needs = ("hidden",)
    by_default = True
    rank = 80

    def __init__(
        self,
        cosine: float = COSINE,
        *,
        absolute: bool = False,
        large: float = LARGE,
        candidates: int = CANDIDATES,
        eps: float = EPS,
        min_queries: int = MIN_QUERIES,
    ) -> None:
        if not 0 < cosine < 1 or candidates < 1:
            raise InputError(f"Expected cosine between 0 and 1 and at least 1 candidate, got {cosine}, {candidates}.")
        self.cosine, self.absolute, self.large, self.candidates = cosine, absolute, large, candidates
        self.eps, self.min_queries = eps, min_queries
        self._norms: list[_Columns] = []
        self._aligned: list[_Columns] = []

    def statistics(self, batch: TokenBatch) -> Sequence[StatisticFactory]:
        """Attention received: an aligned token that no head attends to is no sink."""
        return [ReceivedMass]

    def update(self, record: LayerRecord) -> None:
        """Take one layer; of the embedding output (-1) only the norm counts."""
        if record.hidden is None:
            return
        real = record.real.to(record.hidden.device)
        if record.residual is None:
            norms = torch.linalg.vector_norm(record.hidden, dim=-1, dtype=torch.float32).masked_fill(~real, math.nan)
        else:
            norms = record.residual.norm
        for position in range(min(self.candidates, real.shape[1])):
            sequence = real[:, position].nonzero().flatten()
            rest = norms[sequence].index_fill(1, torch.tensor([position], device=norms.device), math.nan)
            columns = {"norm": norms[sequence, position], "sequence": sequence + record.first_sequence}
            columns["others"] = rest.nanmedian(1).values
            columns["is_bos"] = record.batch.bos[:, position].to(sequence.device)[sequence]
            self._norms.append(_columns(columns, layer=record.layer, bos=position))
            if record.layer >= 0:
                self._aligned.append(self._find(record, bos_cosine(record.hidden, position, norms), position, real))

    def _find(self, record: LayerRecord, cosine: Tensor, bos: int, real: Tensor) -> "_Columns":
        """Tokens after ``bos`` that point along it."""
        size = cosine.abs() if self.absolute else cosine
        close = (size > self.cosine) & real
        close[:, : bos + 1] = False
        shared = close.sum(1) >= SHARED * (real.sum(1) - bos - 1).clamp(min=1)
        shared &= real.sum(1) - bos - 1 > 2  # of one or two tokens, "half of them" says nothing
        rows, places = (index.cpu() for index in close.nonzero(as_tuple=True))
        queries = record.batch.lengths.cpu()[rows] - places
        none = torch.full((len(rows),), math.nan)
        columns = {
            "sequence": rows + record.first_sequence,
            "position": places,
            "shared": shared.cpu()[rows],
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
        self.check_settings(other)
        self._norms += other._norms
        self._aligned += other._aligned

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables; empty when no layer was seen."""
        norms = _frame(self._norms)
        if norms.empty or not (norms["layer"] >= 0).any():
            empty = (pd.DataFrame(columns=[*columns]) for columns in (COLUMNS, WINDOW_COLUMNS, LAYER_COLUMNS))
            return dict(zip(TABLES, empty, strict=True))
        windows = self._windows(norms)
        aligned = _frame(self._aligned).merge(windows, on="sequence")
        inside = (aligned["layer"] >= aligned["start"]) & (aligned["layer"] < aligned["end"])
        aligned = aligned[inside & (aligned["bos"] == aligned["bos_position"])].sort_values("layer", kind="stable")
        key = ["sequence", "window"]
        shared = aligned[aligned["shared"].astype(bool)].groupby(key)["layer"].nunique().rename("n_shared")
        aligned = aligned[~aligned["shared"].astype(bool)]
        counts = aligned.groupby(key)["position"].nunique().rename("n_aligned")
        windows = windows.merge(counts, on=key, how="left").merge(shared, on=key, how="left")
        for name in ("n_aligned", "n_shared"):
            windows[name] = windows[name].fillna(0).where(windows["start"].notna(), math.nan).astype(float)
        life = (windows["end"] - windows["start"]).groupby(windows["sequence"]).sum()
        aligned = aligned.assign(blocks=aligned["sequence"].map(life))
        blocks = np.unique(norms.loc[norms["layer"] >= 0, "layer"])
        starts, ends = (windows[name].to_numpy()[:, None] for name in ("start", "end"))
        active = ((starts <= blocks) & (ends > blocks)).sum(0)  # a window of NaN holds none
        found = (aligned["layer"].to_numpy()[:, None] == blocks).sum(0)
        each = np.divide(found, active, out=np.full(len(blocks), math.nan), where=active > 0)
        layers = dict(zip(LAYER_COLUMNS, (blocks, active, each, windows["sequence"].nunique()), strict=True))
        return {
            "secondary_sinks": self._tokens(aligned),
            "secondary_windows": windows.astype({"start": "Int64", "end": "Int64"})[[*WINDOW_COLUMNS]],
            "secondary_layers": pd.DataFrame(layers),
        }

    def verdict(self, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[str]:
        """Which tokens are secondary sinks, if any."""
        return describe_secondary(tables["secondary_sinks"]) if "secondary_sinks" in tables else []

    def _windows(self, norms: pd.DataFrame) -> pd.DataFrame:
        """The BOS of each sequence and the windows of its large norm (a row of NaN without one)."""
        blocks = norms[norms["layer"] >= 0]
        index = ["sequence", "bos"]
        curves = blocks.pivot(index=index, columns="layer", values="norm").sort_index()
        others = blocks.pivot(index=index, columns="layer", values="others").sort_index()
        starts_with_bos = set(norms.loc[norms["is_bos"] & (norms["bos"] == 0), "sequence"])
        candidates: dict[int, list[tuple[float, int, np.ndarray, np.ndarray]]] = {}
        for (sequence, bos), curve, rest in zip(curves.index, curves.to_numpy(), others.to_numpy(), strict=True):
            rank = math.inf if bos == 0 and sequence in starts_with_bos else float(curve.mean())
            candidates.setdefault(sequence, []).append((rank, bos, curve, rest))
        rows: list[tuple[Any, ...]] = []
        for sequence, choices in candidates.items():
            _, bos, curve, rest = max(choices, key=lambda choice: choice[0])
            ratio = curve / np.where(rest > 0, rest, np.nan)
            found = sink_windows(curve, rest, self.large)
            for number, (start, end) in enumerate(found):
                inside = slice(start, end)
                rows.append((sequence, bos, number, start, end, _largest(ratio[inside]), curve[inside].max()))
            if not found:
                rows.append((sequence, bos, 0, math.nan, math.nan, _largest(ratio), curve.max()))
        return pd.DataFrame(rows, columns=[*WINDOW_COLUMNS[:-2]])

    def _tokens(self, aligned: pd.DataFrame) -> pd.DataFrame:
        """One row per token, from one row per token and layer of its life."""
        if aligned.empty:
            return pd.DataFrame(columns=[*COLUMNS])
        order = np.lexsort([aligned[name].to_numpy() for name in ("layer", "position", "sequence")])
        row = {name: aligned[name].to_numpy()[order] for name in aligned}
        new = np.ones(len(order), bool)  # token than in the row before
        new[1:] = np.any([row[name][1:] != row[name][:-1] for name in ("sequence", "position")], 0)
        starts, of = new.nonzero()[0], new.cumsum() - 1
        life = np.bincount(of)
        tokens = pd.DataFrame(
            {name: row[name][starts] for name in ("sequence", "position", "token", "queries")}
            | {"first_layer": row["layer"][starts], "last_layer": row["layer"][starts + life - 1], "life": life}
            | {name: means(of, row[name], len(starts)) for name in ("cosine", "importance", "null")}
            | {"importance_max": np.fmax.reduceat(row["importance_max"], starts)}
            | {"window": row["blocks"][starts].astype(int)}
        )
        tokens["share"] = tokens["life"] / tokens["window"]
        tokens["label"] = [self._label(token) for token in tokens.itertuples()]
        return tokens[[*COLUMNS]]

    def _label(self, token: Any) -> Label:
        label: Label = lifetime_label(token.life, token.window)
        if label == "noise":
            return label
        if math.isnan(token.importance_max) or token.queries < self.min_queries:
            return "aligned, not judged"
        # in the precision it was measured in, so that it is strict like the sink rate
        above = np.float32(token.importance_max) > np.float32(self.eps)
        return label if above else "aligned, not a sink"


def _largest(ratios: np.ndarray) -> float:
    return float(np.nanmax(ratios)) if np.isfinite(ratios).any() else math.nan


_Columns = dict[str, np.ndarray]


def _columns(tensors: dict[str, Tensor], **constants: int) -> _Columns:
    """Arrays of equal length; frames made for every layer would take longer than the measurement."""
    arrays: _Columns = {name: value.cpu().numpy() for name, value in tensors.items()}
    count = len(next(iter(arrays.values())))
    return arrays | {name: np.full(count, value) for name, value in constants.items()}


def _frame(parts: Sequence[_Columns]) -> pd.DataFrame:
    frame = frame_of(parts)
    return frame.astype(dict.fromkeys(frame.select_dtypes("float32").columns, np.float64))
