"""Local and global heads by mean attention distance, and what the two kinds say about each token: WAAD and FAI."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.attention import Distance, Entropy, StatisticFactory
from sinklens.attention.distance_outside import DistanceOutside
from sinklens.attention.future_influence import FutureInfluence
from sinklens.attention.windowed_distance import WindowedDistance
from sinklens.capture.record import LayerRecord
from sinklens.detectors.attention_summary import DISTANCE
from sinklens.detectors.base import Metric
from sinklens.detectors.head_means import HeadMeansDetector, visible_keys
from sinklens.detectors.registry import register
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch
from sinklens.wording import several

_SOURCE = "Li et al. 2025, arXiv 2510.13554; null added here"

WITHOUT_SINK = Metric(
    "distance_without_sink",
    1,
    "Mean over queries of sum_j A_ij (i - j) / sum_j A_ij in tokens over all keys j but the sink positions (position 0 "
    "unless said otherwise). Each query counts alike, however little it leaves to other keys; queries that see, or "
    "attend to, sinks alone have none. Null: the same under uniform attention.",
    "standard, sinks left out here",
)
WAAD = Metric(
    "windowed_distance",
    1,
    "Mean over queries of sum_j A_ij min(i - j, W) in tokens, W = 10 unless said otherwise. Null: the same under "
    "uniform attention.",
    _SOURCE,
)
FAI = Metric(
    "future_influence",
    1,
    "For token s the mean attention A_ts over the queries t from s + 10 to s + 50 (unless said otherwise), averaged "
    "over global heads; NaN where there is no such query.",
    _SOURCE,
)

SHARE = 0.3
WINDOW, LOW, HIGH = 10, 10, 50

Queries = Callable[[TokenBatch], Bool[Tensor, "batch pos"]]


def mean_distance(
    pattern: Float[Tensor, "*batch head q_pos k_pos"], excluded: Bool[Tensor, "k_pos"] | None = None
) -> Float[Tensor, "*batch head"]:
    """Mean over queries of the renormalised attention distance in tokens, optionally without some keys.

    Queries that attend to excluded keys alone are left out; NaN if all do.

    Example:
        >>> before = torch.eye(4).roll(1, 0).tril()  # the token before; query 0 sees only itself
        >>> before[0, 0] = 1
        >>> mean_distance(before[None]).item()  # of 0, 1, 1, 1
        0.75
    """
    length = pattern.shape[-1]
    back = torch.arange(length, device=pattern.device)[:, None] - torch.arange(length, device=pattern.device)
    kept = pattern if excluded is None else pattern.masked_fill(excluded, 0)
    mean: Tensor = ((kept * back).sum(-1) / kept.sum(-1)).nanmean(-1)
    return mean


def windowed_distance(
    pattern: Float[Tensor, "*batch head q_pos k_pos"], window: int = WINDOW
) -> Float[Tensor, "*batch head q_pos"]:
    """How many tokens back each query looks on average, where everything beyond the window counts as its length.

    ``sum_j A_ij min(i - j, window)``, in tokens.

    Example:
        >>> windowed_distance(torch.eye(20)[None].roll(13, 1).tril(), 10)[0, [13, 19]].tolist()
        [10.0, 10.0]
    """
    length = pattern.shape[-1]
    back = torch.arange(length, device=pattern.device)[:, None] - torch.arange(length, device=pattern.device)
    return (pattern * back.clamp(max=window)).sum(-1)


def future_influence(
    pattern: Float[Tensor, "*batch head q_pos k_pos"], low: int = LOW, high: int = HIGH
) -> Float[Tensor, "*batch head k_pos"]:
    """How much attention each token gets from those some way after it: high for an anchor that text comes back to.

    Mean of ``A_ts`` over queries t from s + low to s + high; NaN for the last ``low`` keys.

    Example:
        >>> column = torch.zeros(1, 5, 5)
        >>> column[0, :, 1] = 1.0
        >>> future_influence(column, low=2, high=3)
        tensor([[0., 1., 0., nan, nan]])
    """
    length = pattern.shape[-1]
    back = torch.arange(length, device=pattern.device)[:, None] - torch.arange(length, device=pattern.device)
    counts = (back >= low) & (back <= high)
    return (pattern * counts).sum(-2) / counts.sum(-2)


def span_labels(distance: Sequence[float], share: float = SHARE) -> list[str]:
    """Call the ``round(share * n)`` heads of the shortest distance local and as many of the longest global.

    All heads of the model are ranked together; NaN (not applicable) is not ranked and gets no label. Equal distances
    are settled by order, first come lower.

    Args:
        distance: Mean distance of every head.
        share: Share of the ranked heads for each label.

    Returns:
        ``"local"``, ``"global"`` or ``""`` for each head.

    Raises:
        InputError: ``share`` not above 0 or beyond one half.

    Example:
        >>> span_labels([5.0, 1.0, float("nan"), 9.0], 0.34)
        ['', 'local', '', 'global']
    """
    if not 0 < share <= 0.5:
        raise InputError(f"The share of local and of global heads must be above 0 and at most 0.5, got {share}.")
    values = np.asarray(distance, dtype=float)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    count = round(share * len(order))
    labels = np.full(len(values), "", dtype=object)
    labels[order[:count]] = "local"
    labels[order[len(order) - count :]] = "global"
    return [str(label) for label in labels]


@register
class LocalGlobalDetector(HeadMeansDetector):
    """How far back each head looks, in tokens, and which heads look least far (local) and farthest (global).

    Scores ``distance``, ``distance_without_sink`` and ``windowed_distance``, and the labels ``span`` and
    ``span_without_sink``: ``"local"``, ``"global"`` or ``""``. If asked for, a table ``local_global_tokens`` with one
    row per token: ``sequence, position``, ``waad`` (mean windowed distance over local heads at this query) and ``fai``
    (mean future influence over global heads of this key).

    Args:
        sinks: Positions that count as sinks.
        exclude_sinks: Whether the split behind WAAD and FAI ranks heads by their distance without sinks. With sinks, a
            head that rests on position 0 counts as global, and FAI mostly shows the sink. WAAD and FAI themselves are
            the paper's either way: attention on a sink counts as ``window`` tokens.
        share: Share of heads for each kind.
        by_token: Keep WAAD and FAI of every head and token until the end, which costs two numbers for each.
        window: W of the windowed distance.
        low: Nearest query that FAI counts, in tokens after the key.
        high: Farthest.
        queries: Names the queries that count (the response, after a prompt); default: all.

    Source: Li et al. 2025, arXiv 2510.13554.
    """

    name = "local_global"
    metrics = (DISTANCE, WITHOUT_SINK, WAAD, FAI)

    def __init__(
        self,
        *,
        sinks: Sequence[int] = (0,),
        exclude_sinks: bool = False,
        share: float = SHARE,
        by_token: bool = False,
        window: int = WINDOW,
        low: int = LOW,
        high: int = HIGH,
        queries: Queries | None = None,
    ) -> None:
        span_labels([], share)
        scores = ("distance", "distance_without_sink", "windowed_distance")
        super().__init__(*(name + end for name in scores for end in ("", "_null")))
        self.sinks, self.exclude_sinks, self.share, self.by_token = tuple(sinks), exclude_sinks, share, by_token
        self.window, self.low, self.high, self.queries = window, low, high, queries
        self._tokens: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}  # sequence, layer -> WAAD, FAI [head pos]

    def statistics(self, batch: TokenBatch) -> list[StatisticFactory]:
        """What the pass has to measure."""
        excluded = torch.zeros_like(batch.real)
        excluded[:, [sink for sink in self.sinks if sink < excluded.shape[1]]] = True
        found: list[StatisticFactory] = [Entropy, Distance, partial(DistanceOutside, excluded=excluded)]
        found.append(partial(WindowedDistance, window=self.window))
        if self.by_token:
            rows = None if self.queries is None else self.queries(batch)
            found.append(partial(FutureInfluence, low=self.low, high=self.high, queries=rows))
        return found

    def update(self, record: LayerRecord) -> None:
        """Take one layer; layers without attention are left out."""
        attention, visible = record.attention, visible_keys(record)
        if visible is None or "windowed_distance" not in attention:
            return
        rows = None if self.queries is None else self.queries(record.batch)
        values = {
            "distance": attention["distance"],
            "distance_null": ((visible - 1) / 2)[:, None],  # what a query sees ends with itself
            "distance_without_sink": attention["distance_outside"],
            "distance_without_sink_null": attention["distance_outside_null"][:, None],
            "windowed_distance": attention["windowed_distance"],
            "windowed_distance_null": attention["windowed_distance_null"][:, None],
        }
        self._means.add(record, values, rows)
        if not self.by_token:
            return
        for row, length in enumerate(record.batch.lengths.tolist()):
            waad = attention["windowed_distance"][row, :, :length].float().cpu()
            if rows is not None:
                waad = waad.masked_fill(~rows[row, :length].cpu(), math.nan)
            fai = attention["future_influence"][row, :, :length].float().cpu()
            self._tokens.setdefault(record.first_sequence + row, {})[record.layer] = waad, fai

    def merge(self, other: Self) -> None:
        """Add what another detector with the same settings saw of other sequences."""
        super().merge(other)
        for sequence, layers in other._tokens.items():
            self._tokens.setdefault(sequence, {}).update(layers)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Both tables."""
        frame = self._means.table()
        frame["span"] = span_labels(frame["distance"].tolist(), self.share)
        frame["span_without_sink"] = span_labels(frame["distance_without_sink"].tolist(), self.share)
        tokens = {"local_global_tokens": self._by_token(frame)} if self.by_token else {}
        return {"head_scores": frame, **tokens}

    def verdict(self, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[str]:
        """That there are too few heads for the share to name any."""
        count = tables["head_scores"]["distance"].notna().sum() if "head_scores" in tables else 0
        if count and round(self.share * count) == 0:
            return [f"{self.share:.0%} of {several(count, 'head')} rounds to 0: no head is called local or global."]
        return []

    def _by_token(self, frame: pd.DataFrame) -> pd.DataFrame:
        label = "span_without_sink" if self.exclude_sinks else "span"
        sets: dict[str, dict[int, list[int]]] = {"local": {}, "global": {}}
        for layer, head, kind in zip(frame["layer"], frame["head"], frame[label], strict=True):
            if kind:
                sets[kind].setdefault(int(layer), []).append(int(head))
        frames = []
        for sequence, layers in sorted(self._tokens.items()):
            length = next(iter(layers.values()))[0].shape[1]
            curves = {}
            for name, kind, place in (("waad", "local", 0), ("fai", "global", 1)):
                rows = [layers[layer][place][heads] for layer, heads in sets[kind].items() if layer in layers]
                curves[name] = torch.cat(rows).double().mean(0).numpy() if rows else np.full(length, math.nan)
            frames.append(pd.DataFrame({"sequence": sequence, "position": np.arange(length), **curves}))
        empty = pd.DataFrame(columns=["sequence", "position", "waad", "fai"])
        return pd.concat(frames, ignore_index=True) if frames else empty
