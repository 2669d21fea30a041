"""How scores and roles of heads grow from the first step on, and how far heads specialise."""

import math
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

ROLE_COLUMNS = ("layer", "head", "score", "value", "null", "has_role")
GROWTH_COLUMNS = (
    "step", "name", "score", "n_heads", "mean", "top", "top_layer", "top_head", "excess_mean", "excess_top",
    "excess_top_layer", "excess_top_head", "specialisation", "specialisation_excess", "n_labelled",
)  # fmt: skip


def with_excess(roles: pd.DataFrame) -> pd.DataFrame:
    """The same with ``excess``: a head's score less what it was at the first step.

    What an untrained head scores, by its input alone, is not taken for something learned.

    Args:
        roles: All steps: step, name and ``ROLE_COLUMNS``.
    """
    if roles.empty:
        return roles.assign(excess=pd.Series(dtype=float))
    first = roles[roles["step"] == roles["step"].min()]
    key = ["layer", "head", "score"]
    joined = roles.merge(first[[*key, "value"]].rename(columns={"value": "at_first"}), on=key, how="left")
    return joined.assign(excess=joined["value"] - joined["at_first"]).drop(columns="at_first")


def specialisation(values: Float[np.ndarray, " head"]) -> float:
    """How unevenly heads share a score: the Gini coefficient, 0 where all have as much, near 1 where one has all.

    ``sum_ij |x_i - x_j| / (2 n sum_i x_i)``. Scores below 0 count as 0, heads without one are left out; NaN where no
    head has any.

    >>> specialisation(np.array([1.0, 1.0])), specialisation(np.array([0.0, 0.0, 0.0, 2.0]))
    (0.0, 0.75)
    """
    x = np.sort(np.clip(values[~np.isnan(values)], 0, None))
    if not len(x) or not x.sum() > 0:
        return math.nan
    ranks = np.arange(1, len(x) + 1)
    return float(((2 * ranks - len(x) - 1) * x).sum() / (len(x) * x.sum()))


def role_growth(roles: pd.DataFrame) -> pd.DataFrame:
    """How each score grows: one row per step and score.

    Args:
        roles: From :func:`with_excess`.

    Returns:
        step, name, score; n_heads with a score; mean and top over heads, with the top's layer and head; excess_mean and
        excess_top over the first step, with the head of the latter; specialisation, and specialisation_excess over the
        first step; n_labelled heads with the role (missing where the score labels nobody).
    """
    rows: list[dict[str, Any]] = []
    start: dict[str, float] = {}
    for (step, score), part in roles.sort_values(["step", "layer", "head"]).groupby(["step", "score"], sort=True):
        known = part.dropna(subset=["value"])
        row: dict[str, Any] = {"step": step, "name": part["name"].iloc[0], "score": score, "n_heads": len(known)}
        row |= {"mean": float(known["value"].mean()), "excess_mean": float(known["excess"].mean())}
        for column, prefix in (("value", "top"), ("excess", "excess_top")):
            told = known.dropna(subset=[column])
            top = told.iloc[int(told[column].to_numpy(float).argmax())] if len(told) else None
            row[prefix] = math.nan if top is None else float(top[column])
            row[f"{prefix}_layer"] = None if top is None else int(top["layer"])
            row[f"{prefix}_head"] = None if top is None else int(top["head"])
        row["specialisation"] = specialisation(part["value"].to_numpy(float))
        row["specialisation_excess"] = row["specialisation"] - start.setdefault(str(score), row["specialisation"])
        labelled = part["has_role"].dropna()
        row["n_labelled"] = int(labelled.sum()) if len(labelled) else None
        rows.append(row)
    whole = ["top_layer", "top_head", "excess_top_layer", "excess_top_head", "n_labelled"]
    return pd.DataFrame(rows, columns=[*GROWTH_COLUMNS]).astype(dict.fromkeys(whole, "Int64"))


def growth_sentences(growth: pd.DataFrame) -> list[str]:
    """For each score what its strongest head gained by the last step, and how the share of the heads changed."""
    out = []
    for score, rows in growth.groupby("score", sort=False):
        rows = rows.sort_values("step")
        first, last = rows.iloc[0], rows.iloc[-1]
        if len(rows) < 2 or math.isnan(last["excess_top"]):
            continue
        head = f"L{int(last['excess_top_layer'])}H{int(last['excess_top_head'])}"
        text = (
            f"{score}: {head} gains most by step {int(last['step']):,}, {last['excess_top']:+z.2f} over step "
            f"{int(first['step']):,}"
        )
        if last["excess_top"] <= 0:
            text = f"{score}: no head has more at step {int(last['step']):,} than at step {int(first['step']):,}"
        text += f"; mean of heads {first['mean']:.2f} to {last['mean']:.2f}"
        if not math.isnan(last["specialisation_excess"]):
            text += f", specialisation {first['specialisation']:.2f} to {last['specialisation']:.2f}"
        labelled = rows["n_labelled"].dropna()
        if len(labelled):
            text += f"; heads with the role: {int(labelled.iloc[0])} to {int(labelled.iloc[-1])}"
        out.append(f"{text}.")
    return out
