"""Which pooling finds documents, and what was left out."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from sinklens.evidence.bootstrap import paired_interval
from sinklens.results.result import Result
from sinklens.wording import are, changed, several

FORMAT = "sinklens-pooling"
RANK_COLUMNS = ("layer", "pooling", "draw", "pair", "own", "others", "rank", "n")


@dataclass(frozen=True)
class PoolingComparison(
    Result,
    format=FORMAT,
    title="Poolings of a layer",
    newest=1,
    needs=("ranks", "left_out"),
    header=("settings", "n_tokens"),
):
    """How often a question is nearest to its document, by layer and pooling, beside random positions left out.

    Attributes:
        meta: Model, settings.
        tables: ``ranks`` and ``left_out``.
    """

    @property
    def ranks(self) -> pd.DataFrame:
        """One row per layer, pooling, draw and question.

        Columns: layer, pooling, draw, pair (question), own (cosine to its document), others (mean cosine to the other
        documents), rank (of its document, from 1; equal ones share the middle), n (documents).
        """
        return self.tables["ranks"]

    @property
    def left_out(self) -> pd.DataFrame:
        """Positions that ``sink_free`` leaves out.

        Columns: text (question and document of pair p are 2p and 2p + 1), position, token, n_sink_heads (missing where
        fewer than five tokens could look), is_sink, is_massive.
        """
        return self.tables["left_out"]

    def summary(self) -> pd.DataFrame:
        """One row per layer and pooling: first (share ranked first), mrr with low and high, own, others, chance."""
        return summarize(self.ranks)

    @property
    def verdict(self) -> list[str]:
        """Whether leaving extreme positions out helps, beside leaving out random ones."""
        return pooling_words(self.ranks, self.left_out, int(self.meta["n_tokens"]))


def reciprocal(ranks: pd.DataFrame) -> pd.DataFrame:
    """``1 / rank``, mean over draws: one row per layer and pair, a column a pooling."""
    some = ranks.assign(value=1 / ranks["rank"])
    return some.pivot_table(index=["layer", "pair"], columns="pooling", values="value", dropna=False)


def summarize(ranks: pd.DataFrame) -> pd.DataFrame:
    """See :meth:`PoolingComparison.summary`."""
    rows = []
    wide = reciprocal(ranks)
    for (layer, pooling), some in ranks.groupby(["layer", "pooling"], sort=False):
        here = wide.index.get_level_values("layer") == layer
        mrr = paired_interval(wide.loc[here, [str(pooling)]].to_numpy(float)[:, 0])
        n = int(some["n"].iloc[0])
        chance = float((1 / np.arange(1, n + 1)).mean())
        means = float(some["own"].mean()), float(some["others"].mean())
        first = float((some["rank"] == 1).mean())
        rows.append((layer, pooling, first, mrr.value, mrr.low, mrr.high, *means, chance))
    return pd.DataFrame(rows, columns=["layer", "pooling", "first", "mrr", "low", "high", "own", "others", "chance"])


def pooling_words(ranks: pd.DataFrame, left_out: pd.DataFrame, n_tokens: int) -> list[str]:
    """What was left out, and each layer in a sentence."""
    at_start = int((left_out["position"] == 0).sum())
    out = [
        f"{len(left_out)} of {several(n_tokens, 'position')} {are(len(left_out))} extreme ({at_start} of them position "
        f"0): {several(int(left_out['is_sink'].sum()), 'sink')}, {int(left_out['is_massive'].sum())} massive."
    ]
    table = summarize(ranks).set_index(["layer", "pooling"])
    wide = reciprocal(ranks)
    for layer in dict.fromkeys(ranks["layer"]):
        part = table.loc[layer]
        named = [f"{name} {row.mrr:.2f} (others' cosine {row.others:.2f})" for name, row in part.iterrows()]
        text = f"Layer {layer}: mean reciprocal rank {', '.join(named)}; chance {part['chance'].iloc[0]:.2f}"
        some = wide.loc[layer]
        gaps = []
        for name in ("mean", "no_first", "random"):
            if name in some and "sink_free" in some:
                gain = paired_interval((some["sink_free"] - some[name]).to_numpy(float))
                gaps.append(f"{changed(gain.value, gain.low, gain.high)} over {name}")
        out.append(text + (f"; without extreme positions {', '.join(gaps)}." if gaps else "."))
    return out
