"""Active and dormant heads: at work on one kind of text or token, resting on a sink on another."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.attention import Entropy, KeySetMass, StatisticFactory
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector, Metric
from sinklens.detectors.dormancy import THRESHOLDS, Thresholds
from sinklens.detectors.registry import register
from sinklens.models.tokens import TokenBatch

MASS = Metric(
    "sink_mass",
    1,
    "Mean over the queries i > 0 of one domain and token class of the attention on the sink keys (position 0 unless "
    "said otherwise), per sequence and then over sequences. Query 0 is left out: by causality it attends to itself "
    "alone. Null: the same under uniform attention.",
    "Guo et al. 2024, arXiv 2410.13835 (which keeps query 0); null added here",
)
OUTPUT_NORM = Metric(
    "head_output_norm",
    1,
    "Mean over the same queries of |W_O z_i|, what the head writes. norm_ratio: over the mean of the heads of its "
    "layer (NaN with one head). own_ratio: over the head's own largest mean among domains and classes (NaN with one).",
    "norm_ratio: Sandoval-Segura et al. 2025, arXiv 2504.03889 (HONOR), there with a threshold that follows the "
    "distribution of scores; own_ratio added here",
)
ABLATION = Metric(
    "ablation_delta",
    1,
    "Rise of the loss in nats per token, on the same queries, when the head's output is set to zero; per sequence, "
    "then over sequences, with a paired bootstrap interval.",
    "Guo et al. 2024, arXiv 2410.13835: a head is active where zeroing it costs loss, dormant where it does not",
)

Criterion = Literal["mass", "norm", "own_norm", "ablation"]
CRITERIA: tuple[Criterion, ...] = ("mass", "norm", "own_norm", "ablation")
State = Literal["active", "dormant", "unclear"]
Label = Literal["active", "dormant", "idle", "loaded sink", "unclear", "not judged"]

GROUP = ("domain", "class")
HEAD = ("layer", "head")
COLUMNS = (
    *HEAD, *GROUP, "n_sequences", "n_queries", "mass", "null", "norm", "norm_ratio", "own_ratio",
)  # fmt: skip
SEQUENCE_COLUMNS = (*HEAD, *GROUP, "sequence", "n_queries", "mass", "null", "norm")

TABLES = ("active_dormant", "active_dormant_sequences")

TokenClasses = Callable[[TokenBatch], Mapping[str, Bool[Tensor, "batch pos"]]]
"""Names classes of queries: for each the rows that belong to it. Padding and position 0 are left out in any case."""


def state_by_mass(mass: float, null: float, thresholds: Thresholds = THRESHOLDS) -> State | None:
    """Dormant if the head rests on the sink, active if it does not; ``None`` for NaN.

    Example:
        >>> state_by_mass(0.97, 0.05), state_by_mass(0.4, 0.05), state_by_mass(0.4, 0.3), state_by_mass(0.01, 0.05)
        ('dormant', 'unclear', 'active', 'active')
    """
    if math.isnan(mass) or math.isnan(null):
        return None
    if mass <= thresholds.active_mass or mass < thresholds.null_ratio * null:
        return "active"
    return "dormant" if mass >= thresholds.dormant_mass else "unclear"


def state_by_norm(ratio: float, thresholds: Thresholds = THRESHOLDS) -> State | None:
    """Dormant if the head writes little beside others, or beside what it writes elsewhere; ``None`` for NaN.

    Example:
        >>> state_by_norm(0.1), state_by_norm(1.3)
        ('dormant', 'active')
    """
    if math.isnan(ratio):
        return None
    return "dormant" if ratio < thresholds.norm else "active"


def state_by_ablation(low: float, high: float, effect: float) -> State | None:
    """Active if the whole interval of the loss's rise lies beyond the effect that matters, dormant if all is within it.

    A head whose removal *lowers* the loss by as much has an effect, too, and is active. ``None`` without an interval or
    a bound.

    Args:
        low: Lower end of the rise, in nats.
        high: Upper end.
        effect: The rise that matters, in nats.

    Example:
        >>> state_by_ablation(6.1, 6.8, 0.03), state_by_ablation(-0.01, 0.02, 0.03), state_by_ablation(0.01, 0.2, 0.03)
        ('active', 'dormant', 'unclear')
    """
    if math.isnan(low) or math.isnan(high) or math.isnan(effect):
        return None
    if low > effect or high < -effect:
        return "active"
    return "dormant" if -effect <= low and high <= effect else "unclear"


def head_label(mass: State | None, ablation: State | None) -> Label:
    """What a head is on one kind of text or token: ablation says whether it matters, mass whether it rests on a sink.

    - ``"active"``: its removal matters, and it does not rest on the sink;
    - ``"dormant"``: its removal does not matter, and it rests on the sink;
    - ``"idle"``: its removal does not matter, though it does not (clearly) rest on the sink: it is not needed, or
      others stand in for it;
    - ``"loaded sink"``: its removal matters although it rests on the sink: what the sink's value writes is used;
    - ``"unclear"``: the interval of the effect does not decide; ``"not judged"``: there is none.

    The norms are evidence and enter :func:`agreement`, not the label: the literature shares no threshold for them.

    Example:
        >>> head_label("active", "active"), head_label("dormant", "dormant"), head_label("unclear", "dormant")
        ('active', 'dormant', 'idle')
    """
    if ablation is None:
        return "not judged"
    if ablation == "unclear":
        return "unclear"
    if ablation == "active":
        return "loaded sink" if mass == "dormant" else "active"
    return "dormant" if mass == "dormant" else "idle"


def agreement(states: pd.DataFrame, criteria: Sequence[str] = CRITERIA) -> pd.DataFrame:
    """How often two criteria say the same of a head on a domain and class.

    Args:
        states: A column of ``"active"``, ``"dormant"`` or anything else (left out) per criterion.
        criteria: Names of the columns.

    Returns:
        One row per pair: ``criterion, other, n`` (rows where both decide), ``agreement`` (share of them that are equal)
        and ``kappa`` = (agreement - chance) / (1 - chance), Cohen's, with the chance of two independent criteria of
        these frequencies. NaN without rows, and kappa too where both say one thing only.

    Example:
        >>> agreement(pd.DataFrame({"a": ["active", "dormant", "unclear"], "b": ["active", "dormant", "active"]}), "ab")
          criterion other  n  agreement  kappa
        0         a     b  2        1.0    1.0
    """
    rows = []
    for place, one in enumerate(criteria):
        for other in criteria[place + 1 :]:
            decided = states[[one, other]].isin(["active", "dormant"]).all(axis=1)
            left, right = (states.loc[decided, name] == "dormant" for name in (one, other))
            n = int(decided.sum())
            same = float((left == right).mean()) if n else math.nan
            chance = left.mean() * right.mean() + (1 - left.mean()) * (1 - right.mean()) if n else math.nan
            rows.append((one, other, n, same, (same - chance) / (1 - chance) if n and chance < 1 else math.nan))
    return pd.DataFrame(rows, columns=["criterion", "other", "n", "agreement", "kappa"])


def every_query(batch: TokenBatch) -> dict[str, Bool[Tensor, "batch pos"]]:
    """One class that holds every token."""
    return {"all": batch.real}


@register
class ActiveDormantDetector(Detector):
    """How much each head attends to the sink and how much it writes, by kind of text or token.

    Nearly all on the sink and little written: the head rests there; whether it matters is for zeroing it to say. Takes
    ``mass_sink`` (from :class:`~sinklens.attention.KeySetMass` over ``keys``) where it was measured, else ``mass_bos``
    in sequences whose only BOS is at position 0.

    Tables: ``active_dormant``, one row per head, domain and class, means over the sequences that have such queries:
    ``mass`` with its ``null``, ``norm``, ``norm_ratio``, ``own_ratio`` (see the metrics), ``n_sequences``,
    ``n_queries`` in all. ``active_dormant_sequences``: the same before averaging.

    Args:
        domain: Name of the texts; detectors of several domains can be merged.
        classes: Which queries belong to which class; default: all to one.
        keys: Positions of the sink.

    Cost: four numbers per head, class and sequence.
    """

    name = "active_dormant"
    metrics = (MASS, OUTPUT_NORM)
    wants = ("outputs",)

    def __init__(self, domain: str = "text", classes: TokenClasses = every_query, keys: Sequence[int] = (0,)) -> None:
        self.domain, self.classes, self.keys = domain, classes, tuple(keys)
        self._parts: list[pd.DataFrame] = []

    def statistics(self, batch: TokenBatch) -> Sequence[StatisticFactory]:
        """The number of keys that each query sees, and its mass on the sink."""
        sink = torch.zeros_like(batch.real)
        sink[:, [key for key in self.keys if key < sink.shape[1]]] = True
        return [Entropy, partial(KeySetMass, sets={"sink": sink})]

    def update(self, record: LayerRecord) -> None:
        """Take one layer; layers without attention are left out."""
        if "entropy_null" not in record.attention:
            return
        mass, null = self._mass(record), self._null(record)
        norm = torch.full_like(mass, math.nan) if record.outputs is None else record.outputs.to(mass.device)
        sequences, heads = mass.shape[:2]
        queries = record.real.to(mass.device).clone()
        queries[:, 0] = False
        for name, members in self.classes(record.batch).items():
            rows = queries & members.to(mass.device)
            count = rows.sum(1)
            columns = {"mass": _mean(mass, rows), "null": _mean(null.expand_as(mass), rows), "norm": _mean(norm, rows)}
            frame = pd.DataFrame({column: value.flatten().cpu().numpy() for column, value in columns.items()})
            frame["layer"], frame["domain"], frame["class"] = record.layer, self.domain, name
            frame["head"] = np.tile(np.arange(heads), sequences)
            frame["sequence"] = np.repeat(np.arange(sequences), heads) + record.first_sequence
            frame["n_queries"] = np.repeat(count.cpu().numpy(), heads)
            self._parts.append(frame[frame["n_queries"] > 0])

    def _mass(self, record: LayerRecord) -> Float[Tensor, "batch head q_pos"]:
        if "mass_sink" in record.attention:
            return record.attention["mass_sink"].double()
        entropy = record.attention["entropy"]
        if "mass_bos" not in record.attention:
            return torch.full_like(entropy, math.nan, dtype=torch.float64)
        only_first = record.batch.bos[:, 0] & (record.batch.bos.sum(1) == 1) & (self.keys == (0,))
        return (
            record.attention["mass_bos"].double().masked_fill(~only_first.to(entropy.device)[:, None, None], math.nan)
        )

    def _null(self, record: LayerRecord) -> Float[Tensor, "batch 1 q_pos"]:
        """Mass on the sink under uniform attention, from the number of keys that each query sees."""
        visible = record.attention["entropy_null"].double().exp().round()
        query = torch.arange(visible.shape[1], device=visible.device)
        seen = [(query >= key) & (query - key < visible) for key in self.keys]  # a window hides what lies before it
        return (torch.stack(seen).sum(0) / visible)[:, None]

    def merge(self, other: Self) -> None:
        """Add what another detector saw of other sequences or another domain."""
        self._parts += other._parts

    def tables(self) -> dict[str, pd.DataFrame]:
        """Both tables."""
        parts = [part for part in self._parts if len(part)]
        if not parts:
            empty = pd.DataFrame(columns=[*COLUMNS]), pd.DataFrame(columns=[*SEQUENCE_COLUMNS])
            return dict(zip(TABLES, empty, strict=True))
        rows = pd.concat(parts, ignore_index=True)[[*SEQUENCE_COLUMNS]]
        order = [*HEAD, *GROUP, "sequence"]
        rows = rows.sort_values(order, kind="stable", ignore_index=True)
        grouped = rows.groupby([*HEAD, *GROUP], sort=False)
        table = grouped[["mass", "null", "norm"]].mean()
        table["n_sequences"], table["n_queries"] = grouped.size(), grouped["n_queries"].sum()
        table = table.reset_index()
        return dict(zip(TABLES, (_with_ratios(table)[[*COLUMNS]], rows), strict=True))


def _with_ratios(table: pd.DataFrame) -> pd.DataFrame:
    norms = table.groupby(["layer", *GROUP])["norm"]
    table["norm_ratio"] = table["norm"] / norms.transform("mean").where(norms.transform("size") > 1)
    own = table.groupby([*HEAD])["norm"]
    largest = own.transform("max").where((own.transform("size") > 1) & (own.transform("max") > 0))
    table["own_ratio"] = table["norm"] / largest
    return table


def _mean(values: Float[Tensor, "batch head q_pos"], rows: Bool[Tensor, "batch q_pos"]) -> Float[Tensor, "batch head"]:
    total: Any = torch.where(rows[:, None], values.double(), 0).sum(-1)
    mean: Tensor = total / rows.sum(1)[:, None]
    return mean
