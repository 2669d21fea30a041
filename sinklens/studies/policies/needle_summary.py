"""What the needles of a comparison of policies come to, and say."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sinklens.evidence.bootstrap import paired_interval

CLEAN = ""
"""Stands for full attention in the column ``policy`` of the table of needles."""


def summarise_needles(needles: pd.DataFrame, claims: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One row per policy: how it answers, beside full attention on the same prompts.

    Args:
        needles: Rows by policy and instance, those of full attention under :data:`CLEAN`.
        claims: Rows by policy: rule, scope, group and the rest that the summary holds of it.
        seed: Of the bootstrap.
    """
    clean = needles[needles["policy"] == CLEAN].set_index("instance").sort_index()
    rows = []
    for claim in claims.to_dict("records"):
        own = needles[needles["policy"] == claim["policy"]].set_index("instance").sort_index()
        change = paired_interval((own["log_prob"] - clean["log_prob"]).to_numpy(dtype=np.float64), seed=seed)
        rows.append(
            {
                **{name: claim[name] for name in ("policy", "rule", "budget", "scope", "group", "kept", "density")},
                "n_needles": len(own),
                "needle_exact": float(own["exact"].mean()),
                "clean_needle_exact": float(clean["exact"].mean()),
                "needle_rank": float(own["rank"].mean()),
                "clean_needle_rank": float(clean["rank"].mean()),
                "delta_needle_log_prob": change.value,
                "delta_needle_log_prob_low": change.low,
                "delta_needle_log_prob_high": change.high,
                "needle_mass": float(own["needle_mass"].mean()),
                "needle_kept": float(own["needle_kept"].mean()),
            }
        )
    return pd.DataFrame(rows)


def needle_sentences(summary: pd.DataFrame) -> list[str]:
    """What the needles say, recomputable from their summary: only rules that drop keys and do not look ahead."""
    fair = summary[(summary["scope"] != "global") & (summary["density"] < 1 - 1e-9)]
    if fair.empty:
        return []
    rows = fair.to_dict("records")
    clean, n = float(rows[0]["clean_needle_exact"]), int(rows[0]["n_needles"])
    found = [
        f"With full attention {clean:.0%} of {n} needles are answered, the answer's mean rank is "
        f"{rows[0]['clean_needle_rank']:.3g}."
    ]
    best, worst = (pick(rows, key=lambda row: float(row["delta_needle_log_prob"])) for pick in (max, min))
    names = [best] if best is worst else [best, worst]
    for row, word in zip(names, ("best", "worst"), strict=False):
        how = f" keeps the needle {word}" if len(names) > 1 else ""
        found.append(
            f"{row['policy']}{how}: {row['needle_exact']:.0%} answered, mean rank {row['needle_rank']:.3g}, "
            f"{row['delta_needle_log_prob']:+z.3f} nats a token of the answer; {_left(row)}."
        )
    return found


def _left(row: Mapping[Any, Any]) -> str:
    if not row["needle_mass"] > 0:
        return "no attention goes to the needle"
    return f"{row['needle_kept'] / row['needle_mass']:.0%} of the attention to the needle is left"
