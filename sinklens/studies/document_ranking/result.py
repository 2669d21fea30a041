"""How documents are ranked, and how often the right one comes first."""

from dataclasses import dataclass

import pandas as pd

from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.wilson import wilson_interval
from sinklens.results.result import Result
from sinklens.wording import several

FORMAT = "sinklens-document-ranking"
CONTROLS = ("overlap", "place", "random")
"""Rules that never ask the model."""


@dataclass(frozen=True)
class DocumentRanking(
    Result,
    format=FORMAT,
    title="Attention as a retriever",
    newest=1,
    needs=("ranks", "use"),
    header=("settings",),
):
    """Documents in the order in which a question looks at them, by several rules and three controls.

    Attributes:
        meta: Model, settings.
        tables: ``ranks`` and ``use``.
    """

    @property
    def ranks(self) -> pd.DataFrame:
        """One row per task, method and document.

        Columns: task, method, document (number), gold (missing where it is not known), n_tokens, score, rank (from 1;
        equal scores in random order).
        """
        return self.tables["ranks"]

    @property
    def use(self) -> pd.DataFrame:
        """Context use: one row per task with a gold document and an answer, teacher-forced.

        Columns: task; share (of the attention that the answer's rows give to documents, the gold one's) with
        share_null (its share of their tokens); log_prob (of an answer token, mean, nats), and what it loses without
        the gold document (lost_gold) and without a random other one (lost_other).
        """
        return self.tables["use"]

    def summary(self) -> pd.DataFrame:
        """One row per method: n, first (how often the gold document is), share, low, high (Wilson), chance, mrr."""
        return summarize(self.ranks)

    @property
    def verdict(self) -> list[str]:
        """How often each rule puts the right document first, and whether the model uses it."""
        return ranking_words(self.ranks, self.use)


def summarize(ranks: pd.DataFrame) -> pd.DataFrame:
    """See :meth:`DocumentRanking.summary`."""
    rows = []
    sizes = ranks.groupby(["task", "method"])["document"].transform("size")
    gold = ranks.assign(size=sizes)[ranks["gold"].fillna(False).astype(bool)]
    for method, some in gold.groupby("method", sort=False):
        n, first = len(some), int((some["rank"] == 1).sum())
        low, high = wilson_interval(first, n)
        chance = float((1 / some["size"]).mean())
        mrr = float((1 / some["rank"]).mean())
        rows.append((method, n, first, first / n, low, high, chance, mrr))
    return pd.DataFrame(rows, columns=["method", "n", "first", "share", "low", "high", "chance", "mrr"])


def ranking_words(ranks: pd.DataFrame, use: pd.DataFrame) -> list[str]:
    """The best rule beside the controls, all others, and context use."""
    table = summarize(ranks)
    if table.empty:
        tops = ranks[(ranks["rank"] == 1) & ~ranks["method"].isin(CONTROLS)]
        return [
            f"First by {row.method}: document {row.document}, counted from 0."
            for row in tops.itertuples()
            if row.task == 0
        ]
    rules = table[~table["method"].isin(CONTROLS)]
    out = []
    if len(rules):
        best = rules.sort_values(["first", "mrr"], ascending=False, kind="stable").iloc[0]
        text = (
            f"{best['method']} puts the right document first in {best['first']} of {several(best['n'], 'task')} "
            f"({best['share']:.2f} [{best['low']:.2f}, {best['high']:.2f}]; chance {best['chance']:.2f})"
        )
        hit = ranks[ranks["gold"].fillna(False).astype(bool)].assign(hit=lambda t: (t["rank"] == 1).astype(float))
        wide = hit.pivot(index="task", columns="method", values="hit")
        for name in CONTROLS:
            if name in wide:
                text += f"; {name} in {int(wide[name].sum())}"
                text += f" (difference {paired_interval((wide[best['method']] - wide[name]).tolist())})"
        out.append(f"{text}.")
        tops = ranks[ranks["task"].isin(hit["task"])].pivot(index=["task", "document"], columns="method", values="rank")
        if "place" in tops:
            same = int(((tops[best["method"]] == 1) & (tops["place"] == 1)).sum())
            out.append(
                f"In {same} of {several(best['n'], 'task')} the document that {best['method']} puts first is the first "
                "of the prompt."
            )
        others = rules[rules["method"] != best["method"]]
        if len(others):
            named = [f"{row.method} {row.first}" for row in others.itertuples()]
            out.append(f"Other rules: {', '.join(named)}.")
    if len(use):
        share, null = use["share"].mean(), use["share_null"].mean()
        lost, other = (paired_interval(use[name].tolist()) for name in ("lost_gold", "lost_other"))
        out.append(
            f"While answering, the right document gets {share:.2f} of the attention to documents (its share of their "
            f"tokens: {null:.2f}); without it an answer token loses {lost} nats, without a random other one {other}."
        )
    return out
