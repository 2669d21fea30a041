"""Are the retrieval heads the induction heads, and are they sink heads on prose? Ranks, overlaps and correlations."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from sinklens.errors import InputError
from sinklens.interventions.heads import head_name
from sinklens.studies.ablation.agreement import rank_agreement
from sinklens.studies.head_roles.chance import top_overlap

JOINED = {
    "retrieval": "retrieval",
    "importance": "sink importance on text",
    "induction": "induction",
    "previous_token": "previous-token",
}
"""The joined scores and what sentences call them; the last one may be missing."""

TOP = 10


@dataclass(frozen=True)
class RetrievalJoin:
    """Retrieval, sink and induction scores of the same heads.

    Attributes:
        top: Size of the top sets.
        heads: One row per head that has all scores: layer, head, the scores, and rank_<score> (1 = the highest; heads
            that tie share their mean rank). The highest retrieval score first, ties by induction.
        pairs: One row per pair of scores: first, second, n; top_both (heads in both top sets; heads that tie for the
            last places share them), top_chance, p (hypergeometric probability that random sets share at least as many
            whole heads); spearman with spearman_low and spearman_high (95 % bootstrap over heads).
    """

    top: int
    heads: pd.DataFrame = field(repr=False)
    pairs: pd.DataFrame = field(repr=False)

    @property
    def verdict(self) -> list[str]:
        """One sentence on the strongest retrieval heads against each other score."""
        if self.heads.empty or not self.heads["retrieval"].max() > 0:
            return ["No head copied a needle, so retrieval heads cannot be compared with sink and induction heads."]
        first = self.heads.iloc[0]
        name = head_name((int(first["layer"]), int(first["head"])))
        out = [
            f"The strongest retrieval head, {name} ({first['retrieval']:.2f}), ranks "
            + ", ".join(f"{first[f'rank_{score}']:g} by {JOINED[score]}" for score in self.scores[1:])
            + f" of {len(self.heads)} heads."
        ]
        mine = self.pairs[self.pairs["first"] == "retrieval"]
        return out + [join_sentence(row, self.top) for row in [*mine.itertuples(index=False)]]

    @property
    def scores(self) -> list[str]:
        """The joined scores."""
        return [name for name in JOINED if name in self.heads]


def retrieval_join(heads: pd.DataFrame, *, top: int = TOP, seed: int = 0) -> RetrievalJoin | None:
    """Join retrieval, sink importance and induction; ``None`` when one of the three was not measured.

    Importance (the mean attention that a head's strongest key receives) and not the sink rate: rates saturate, and
    heads that all have rate 1.00 have no order.

    Args:
        heads: From :meth:`Roles.to_dataframe`.
        top: Size of the top sets; all heads where there are fewer.
        seed: Of the bootstrap.

    Raises:
        InputError: ``top`` below 1.
    """
    if top < 1:
        raise InputError(f"top must be at least 1, got {top}.")
    scores = [name for name in JOINED if name in heads and (name == "retrieval" or heads[name].notna().any())]
    if not {"retrieval", "importance", "induction"} <= {*scores}:
        return None
    table = heads[["layer", "head", *scores]].dropna().astype(dict.fromkeys(scores, "float64"))
    table = table.sort_values(["retrieval", "induction", "layer", "head"], ascending=[False, False, True, True])
    table = table.reset_index(drop=True)
    for name in scores:
        table[f"rank_{name}"] = table[name].rank(ascending=False)
    top = min(top, max(1, len(table)))
    rows = []
    for number, first in enumerate(scores):
        for second in scores[number + 1 :]:
            rows.append({"first": first, "second": second} | _pair(table, first, second, top, seed))
    return RetrievalJoin(top, table, pd.DataFrame(rows))


def _pair(table: pd.DataFrame, first: str, second: str, top: int, seed: int) -> dict[str, Any]:
    n, one, other = len(table), table[first].to_numpy(), table[second].to_numpy()
    names = ("top_both", "top_chance", "p", "spearman", "spearman_low", "spearman_high")
    if not n:
        return {"n": 0} | dict.fromkeys(names, math.nan)
    both, ranks = top_overlap(one, other, top), rank_agreement(one, other, seed=seed)
    whole = math.floor(both.both + 1e-9)
    p = float(hypergeom.sf(whole - 1, n, top, top))
    values = (both.both, both.expected, min(1.0, p), ranks.rho, ranks.low, ranks.high)
    return {"n": n} | dict(zip(names, values, strict=True))


def join_sentence(row: Any, top: int) -> str:
    """How many of the top heads two scores share, with chance and rank correlation."""
    rank = "n/a" if math.isnan(row.spearman) else f"{row.spearman:+z.2f}"
    if not math.isnan(row.spearman_low):
        rank += f" [{row.spearman_low:+z.2f}, {row.spearman_high:+z.2f}]"
    shared = f"{row.top_both:.1f}".removesuffix(".0")
    return (
        f"Of the {top} strongest heads by {JOINED[row.first]} {shared} are among the {top} strongest by "
        f"{JOINED[row.second]} ({row.top_chance:.1f} by chance, p = {row.p:.2g}); Spearman {rank} over {row.n} heads."
    )


def strongest(join: RetrievalJoin) -> pd.DataFrame:
    """The first heads by retrieval score, with every head that ties with the last of them.

    >>> frame = pd.DataFrame({"layer": 0, "head": range(3), "retrieval": [1.0, 0.5, 0.5]})
    >>> len(strongest(RetrievalJoin(2, frame, frame)))
    3
    """
    scores = np.sort(join.heads["retrieval"].to_numpy())[::-1]
    return join.heads[join.heads["retrieval"] >= scores[min(join.top, len(scores)) - 1]] if len(scores) else join.heads
