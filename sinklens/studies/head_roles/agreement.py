"""Where criteria agree: every pair of scores as rankings, as labels, and against chance."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from sinklens.errors import InputError
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.ablation.agreement import rank_agreement
from sinklens.studies.head_roles.chance import auc, overlap, top_overlap

TOP_SHARE = 0.05
"""Size of the top sets where neither criterion has labels: less than this share are retrieval heads (Wu et al.)."""

NUMBERS = (
    "n_first", "n_second", "n_both", "jaccard", "jaccard_chance", "both_chance", "p", "both_in_layers", "p_in_layers",
    "top", "top_both", "top_jaccard", "top_chance", "top_tied_first", "top_tied_second",
    "spearman", "spearman_low", "spearman_high", "tied_first", "tied_second", "auc_first", "auc_second",
)  # fmt: skip

DEFINITIONS = {
    "jaccard": "labelled by both / labelled by either; beside it the mean over random sets of the same sizes",
    "p": "hypergeometric probability that random sets of the same sizes share at least as many heads; p_in_layers: "
    "random within each layer, the number of labelled heads of every layer kept",
    "top_both": "overlap of the k highest by each score, k = size of the smaller labelled set (5 % of the heads "
    "without labels) or as asked; heads that tie for the last places share them equally",
    "spearman": "Spearman's rank correlation over heads, mean ranks for ties, percentile bootstrap interval over heads "
    "(2,000 resamples; heads of one layer are not independent, so it is a little short)",
    "tied": "share of heads whose score another head has too; the rank correlation cannot tell those apart",
    "auc_first": "probability that the first score ranks a head labelled by the second above one that is not, ties "
    "half; auc_second the other way round",
}


def agreement(
    heads: pd.DataFrame,
    criteria: pd.DataFrame,
    *,
    top: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """Compare every pair of criteria over the heads that both know.

    Where one of the two is a score of KV heads the comparison is over KV heads: the other's score is the group's
    maximum, and a group is labelled when any of its heads is. Quantities of labels are NaN where a label set is empty
    or a criterion has no label rule; all are where fewer than 3 heads are known to both.

    Args:
        heads: From :func:`~sinklens.studies.head_roles.join.join_scores`.
        criteria: Its second table.
        top: Size of the top sets, instead of that of the smaller label set.
        seed: Of the bootstrap.
        progress: Told how it goes on, in pairs.

    Returns:
        One row per pair: first, second, unit, n; n_first, n_second, n_both, jaccard, jaccard_chance, both_chance, p,
        both_in_layers, p_in_layers; top, top_both, top_jaccard, top_chance, top_tied_first, top_tied_second; spearman,
        spearman_low, spearman_high, tied_first, tied_second; auc_first, auc_second. See :data:`DEFINITIONS`.

    Raises:
        InputError: ``top`` below 1.
    """
    if top is not None and top < 1:
        raise InputError(f"top must be at least 1, got {top}.")
    pairs = list(combinations(criteria.to_dict("records"), 2))
    rows = []
    progress.begin("Comparing criteria", len(pairs))
    for first, second in pairs:
        rows.append(_compare(heads, first, second, top, seed))
        progress.advance()
    return pd.DataFrame(rows, columns=list(_compare(heads, None, None, None, 0)))


def _compare(heads: pd.DataFrame, first: Any, second: Any, top: int | None, seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {"first": None, "second": None, "unit": None, "n": 0} | dict.fromkeys(NUMBERS, math.nan)
    if first is None:
        return row
    unit = "kv_head" if "kv_head" in (first["unit"], second["unit"]) else "head"
    table = _units(heads, (first, second), unit)
    row |= {"first": first["criterion"], "second": second["criterion"], "unit": unit, "n": len(table)}
    if len(table) < 3:
        return row
    one, other = table["score0"].to_numpy(), table["score1"].to_numpy()
    layer = table["layer"].to_numpy()
    ranks = rank_agreement(one, other, seed=seed)
    row |= {"spearman": ranks.rho, "spearman_low": ranks.low, "spearman_high": ranks.high}
    row |= {"tied_first": _tied(one), "tied_second": _tied(other)}
    sizes = []
    if "label0" in table:
        row |= {"n_first": int(table["label0"].sum()), "auc_second": auc(other, table["label0"].to_numpy())}
        sizes.append(row["n_first"])
    if "label1" in table:
        row |= {"n_second": int(table["label1"].sum()), "auc_first": auc(one, table["label1"].to_numpy())}
        sizes.append(row["n_second"])
    if "label0" in table and "label1" in table:
        found = overlap(table["label0"].to_numpy(), table["label1"].to_numpy(), layer)
        row |= {"n_both": found.both, "jaccard": found.jaccard, "jaccard_chance": found.expected_jaccard}
        row |= {"both_chance": found.expected, "p": found.p}
        row |= {"both_in_layers": found.expected_in_layers, "p_in_layers": found.p_in_layers}
    usual = min((size for size in sizes if size), default=max(1, round(TOP_SHARE * len(table))))
    tops = top_overlap(one, other, min(top or usual, len(table)))
    row |= {"top": tops.k, "top_both": tops.both, "top_jaccard": tops.jaccard, "top_chance": tops.expected}
    return row | {"top_tied_first": tops.tied_first, "top_tied_second": tops.tied_second}


def _units(heads: pd.DataFrame, pair: tuple[Any, Any], unit: str) -> pd.DataFrame:
    """Scores and labels of both criteria, one row per head or KV head that both know."""
    table = heads[["layer", "kv_head"]].copy()
    for number, each in enumerate(pair):
        table[f"score{number}"] = heads[each["criterion"]].astype(float)
        if isinstance(each["role"], str):
            table[f"label{number}"] = heads[f"is_{each['role']}"].fillna(False).astype(bool)
    table = table.dropna(subset=["score0", "score1"])
    if unit == "kv_head":
        table = table.groupby(["layer", "kv_head"], as_index=False).max()
    return table


def _tied(scores: np.ndarray) -> float:
    counts = np.unique(scores, return_counts=True)[1]
    return float(counts[counts > 1].sum() / len(scores))
