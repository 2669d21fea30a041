"""Scores from several measurements and files in one table: a row per head, and what each column means."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sinklens.detectors.head_scores import KEYS, HeadScores
from sinklens.errors import InputError
from sinklens.studies.head_roles.rules import Rule

CRITERIA_COLUMNS = (
    "criterion", "from", "role", "rule", "rule_source", "cut", "unit", "n_known", "n_labelled", "n_at_cut", "version",
    "definition", "source",
)  # fmt: skip


def join_scores(
    parts: Mapping[str, HeadScores], rules: Mapping[str, Rule], *, n_layers: int, n_heads: int, n_kv_heads: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per head with all scores and labels, and one row per score about how it is read.

    A column that an earlier part has already gets the name of its part in front (``text.previous_token``). Query heads
    that share a KV head have one ``kv_head``, counted within the layer; a score that never differs among such heads
    is one of KV heads (``unit``), and a share of heads is then a share of KV heads.

    Args:
        parts: Scores by the name of what gave them.
        rules: Label rule of each score, by score; some may have none.
        n_layers: Layers of the model. A layer without attention has no rows.
        n_heads: Query heads of a layer.
        n_kv_heads: KV heads of a layer.

    Returns:
        ``heads``: layer, head, kv_head, every column of every part, and ``is_<role>`` (nullable booleans).
        ``criteria``: criterion (column of ``heads``), from (part), role, rule, rule_source, cut (the lowest score that
        is labelled), unit, n_known and n_labelled (heads), n_at_cut (units whose score equals the cut), and the
        metric's version, definition and source.

    Raises:
        InputError: A part has heads that the model does not have.
    """
    heads = _index(parts, n_layers, n_heads, n_kv_heads)
    rows = []
    for part, scores in parts.items():
        frame = scores.frame.drop(columns=["kv_head"], errors="ignore")
        columns = [str(name) for name in frame if name not in KEYS]
        names = {name: f"{part}.{name}" if name in heads else name for name in columns}
        heads = heads.merge(frame.rename(columns=names), on=list(KEYS), how="left", validate="one_to_one")
        for score in scores.scores:
            metric, rule = scores.metrics[score], rules.get(score)
            if rule is not None and rule.evidence is not None and rule.evidence not in frame:
                rule = None  # a score of the same name from elsewhere, without what the rule reads
            row: dict[str, Any] = {"criterion": names[score], "from": part}
            row |= _labelled(heads, score, names, rule, part, n_kv_heads < n_heads)
            rows.append(row | {"version": metric.version, "definition": metric.definition, "source": metric.source})
    return heads, pd.DataFrame(rows, columns=list(CRITERIA_COLUMNS))


def _index(parts: Mapping[str, HeadScores], n_layers: int, n_heads: int, n_kv_heads: int) -> pd.DataFrame:
    for name, scores in parts.items():
        outside = scores.frame[(scores.frame["layer"] >= n_layers) | (scores.frame["head"] >= n_heads)]
        if len(outside):
            layer, head = (int(outside[key].iloc[0]) for key in KEYS)
            raise InputError(
                f"{name} has a score of L{layer}H{head}, and the model has {n_layers} layers x {n_heads} "
                "heads; give scores of the same model."
            )
    found = [scores.frame[list(KEYS)] for scores in parts.values()]
    if not found:
        raise InputError("There are no scores to join; name at least one criterion or file.")
    index = pd.concat(found).drop_duplicates().astype(int).sort_values(list(KEYS), ignore_index=True)
    return index.assign(kv_head=index["head"] // (n_heads // n_kv_heads))


def _labelled(
    heads: pd.DataFrame, score: str, names: Mapping[str, str], rule: Rule | None, part: str, shared: bool
) -> dict[str, Any]:
    """Adds the label's column to ``heads`` and describes it."""
    column = names[score]
    values = heads[column].to_numpy(dtype=np.float64, na_value=np.nan)
    unit = "kv_head" if shared and of_kv_heads(heads, column) else "head"
    one_each = values[unit_rows(heads, unit)]
    found: dict[str, Any] = {"unit": unit, "n_known": int((~np.isnan(values)).sum()), "cut": math.nan}
    if rule is None:
        return found | {"role": None, "rule": None, "rule_source": None, "n_labelled": None, "n_at_cut": None}
    role = rule.role if column == score else f"{part}.{rule.role}"
    cut = rule.cut(one_each)
    here = heads.rename(columns={names[name]: name for name in (score, rule.evidence) if name is not None})
    here = here.loc[:, ~here.columns.duplicated(keep="last")]
    heads[f"is_{role}"] = rule.labels(here, cut)
    return found | {
        "role": role,
        "rule": rule.text,
        "rule_source": rule.source,
        "cut": cut,
        "n_labelled": int(heads[f"is_{role}"].sum()),
        "n_at_cut": int((one_each == cut).sum()),
    }


def of_kv_heads(heads: pd.DataFrame, column: str) -> bool:
    """Whether query heads that share a KV head never differ in a score."""
    groups = heads.groupby(["layer", "kv_head"], sort=False)[column]
    return bool((groups.nunique(dropna=False) <= 1).all()) and bool(heads[column].notna().any())


def unit_rows(heads: pd.DataFrame, unit: str) -> np.ndarray:
    """One true entry per head, or per KV head."""
    repeated = heads.duplicated(["layer", "kv_head"]).to_numpy(dtype=bool)
    return ~repeated if unit == "kv_head" else np.ones(len(heads), dtype=bool)


def model_sizes(scores: Sequence[HeadScores]) -> tuple[int, int, int]:
    """Layers, heads and KV heads of the model that some scores are of, when nothing but the scores is there."""
    frames = [each.frame for each in scores]
    n_layers = max(int(frame["layer"].max()) for frame in frames) + 1
    n_heads = max(int(frame["head"].max()) for frame in frames) + 1
    kv = [int(frame["kv_head"].max()) + 1 for frame in frames if "kv_head" in frame]
    return n_layers, n_heads, min(kv, default=n_heads)
