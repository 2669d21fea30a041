"""The result of a needle test: every prompt, a grid over lengths and depths, and the heads that copied."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.retrieval_bands import RETRIEVAL_HEAD
from sinklens.errors import InputError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.wilson import wilson_interval
from sinklens.results.result import Result
from sinklens.results.table import Table
from sinklens.studies.needles import sentences
from sinklens.studies.needles.answers import DECODED, KEEP, RULES, Keep, answered

FORMAT, WORK = "sinklens-needles", "needle test"
CLEAN = "clean"
"""Name of the unchanged model among the variants."""

SUMMARISED = ("exact", "correct", "log_prob")
TABLES = ("grid", "instances", "prompts", "copies")
MEASURES = {
    "exact": "Share of prompts whose answer tokens are all the most likely ones, which is when greedy decoding gives "
    "the answer; Wilson's 95 % interval.",
    "correct": "Share of answer tokens that are the most likely ones, given the answer so far; mean over prompts.",
    "log_prob": "Mean log-probability in nats of the answer's tokens, given the answer so far; mean over prompts with "
    "a 95 % bootstrap interval.",
    "rank": "1 + how many tokens have a higher logit than the answer's, the worst of the answer; median over prompts.",
}


@dataclass(frozen=True)
class NeedleResult(
    Result,
    format=FORMAT,
    title="Needle test",
    newest=1,
    needs=TABLES,
    header=("interventions", "needles", "settings", "heads"),
):
    """What a model, and the model under interventions, made of needles at several lengths and depths.

    Attributes:
        meta: Model, needles with BOS provenance, interventions as JSON, definitions, settings, warnings.
        tables: ``prompts``, ``instances``, ``grid`` and ``copies``; the properties below wrap them.
    """

    @property
    def verdict(self) -> list[str]:
        """The rates of every variant, the heads that copied, and a few answers; see :mod:`.sentences`."""
        found = [sentences.rates(row) for row in self.summary().to_dict("records")]
        if self.meta["heads"] is not None:
            scores = self.heads
            n_kept = scores.meta["n_kept"]
            found += [sentences.heads(scores.frame, n_kept, self.keep)] if n_kept else scores.meta["warnings"]
        instances = self.tables["instances"]
        return found + sentences.responses(instances[instances["variant"] == CLEAN], self.tables["prompts"])

    @property
    def prompts(self) -> Table:
        """One row per prompt: where everything stands in it, its tokens and its answer (as :class:`NeedleInstance`)."""
        return Table("prompts", self.tables["prompts"])

    @property
    def instances(self) -> Table:
        """One row per variant and prompt.

        Columns: variant (``"clean"`` or the name of an intervention), instance, length, depth, repeat, length_got,
        depth_got, n_answer, exact, correct, log_prob, rank (the worst), mean_rank, produced (token ids), null (of the
        retrieval score); with generated text also response, rouge1 and contained.
        """
        return Table("instances", self.tables["instances"])

    @property
    def grid(self) -> Table:
        """One row per variant, length and depth.

        Columns: n, exact with exact_low and exact_high, correct, log_prob with log_prob_low and log_prob_high, rank;
        for interventions delta_exact and delta_log_prob (changed minus clean on the same prompts) with intervals.
        """
        return Table("grid", self.tables["grid"])

    @property
    def variants(self) -> list[str]:
        """``"clean"`` and the names of the interventions."""
        return [CLEAN, *self.meta["interventions"]]

    def summary(self) -> pd.DataFrame:
        """One row per variant over all lengths and depths: n, and exact, correct and log_prob with their changes.

        Prompts of one repeat share their needle, so the intervals are over repeats (each the mean of its prompts), and
        there is none with fewer than 5.
        """
        table = self.tables["instances"].astype({"exact": "float64"})
        means = table.groupby(["variant", "repeat"])[list(SUMMARISED)].mean()
        rows = []
        for name in self.variants:
            row: dict[str, Any] = {"variant": name, "n": int((table["variant"] == name).sum())}
            row["repeats"] = len(means.loc[name])
            for measure in SUMMARISED:
                seed = self.meta["settings"]["seed"]
                row |= _interval(measure, means.loc[name][measure].to_numpy(), seed)
                change = (means.loc[name][measure] - means.loc[CLEAN][measure]).to_numpy()
                row |= _interval(f"delta_{measure}", change * (math.nan if name == CLEAN else 1), seed)
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def heads(self) -> HeadScores:
        """Retrieval scores of every head of the unchanged model, over the prompts that the result's filter keeps."""
        return self.heads_of(self.keep)

    @property
    def keep(self) -> Keep:
        """The filter of prompts that this result was made with; older results kept exact matches."""
        found: Keep = self.meta["settings"].get("keep", "exact")
        return found

    def answered(self) -> pd.DataFrame:
        """One row per variant and filter: keep, n (prompts it keeps), of (all prompts), rule.

        Filters of decoded text have no rows where nothing was decoded.
        """
        table, rows = self.tables["instances"], []
        decoded = "contained" in table and bool(table["rouge1"].notna().all())
        for name in self.variants:
            mine = table[table["variant"] == name].to_dict("records")
            for keep in KEEP:
                if keep in DECODED and not decoded:
                    continue
                n = sum(answered(record, keep) for record in mine)
                rows.append({"variant": name, "keep": keep, "n": n, "of": len(mine), "rule": RULES[keep]})
        return pd.DataFrame(rows)

    def heads_of(self, keep: Keep) -> HeadScores:
        """Retrieval scores of every head of the unchanged model, over the prompts that a filter keeps.

        Raises:
            InputError: The result was made without the heads' strongest keys.
        """
        import torch

        from sinklens.detectors.retrieval import METRICS, CopyScores, RetrievalDetector

        shape = self.meta["heads"]
        if shape is None:
            raise InputError("This result was made without strongest keys (keys=False); it knows nothing about heads.")
        detector = RetrievalDetector([])
        row_of = {layer: row for row, layer in enumerate(shape["layers"])}
        instances = self.tables["instances"]
        copies = dict(list(self.tables["copies"].groupby("instance")))
        for record in instances[instances["variant"] == CLEAN].to_dict("records"):
            event = torch.zeros(len(row_of), shape["n_heads"])
            unique = event.clone()
            mine = copies.get(record["instance"])
            if mine is not None:
                where = ([row_of[layer] for layer in mine["layer"]], mine["head"].tolist())
                event[where] = torch.tensor(mine["event"].to_numpy(copy=True))
                unique[where] = torch.tensor(mine["set"].to_numpy(copy=True))
            detector.add(shape["layers"], CopyScores(event, unique, record["null"]), answered(record, keep))
        frame = detector.tables()["retrieval"]
        kept = int(frame["n_kept"].iloc[0])
        warnings = [] if kept else [self._none_kept(keep)]
        meta = {name: self.meta[name] for name in ("model", "tokens", "needles", "settings")}
        meta |= {"keep": keep, "n_kept": kept, "n_instances": len(self.tables["prompts"]), "warnings": warnings}
        return HeadScores(frame, {metric.name: metric for metric in METRICS}, meta)

    def _none_kept(self, keep: Keep) -> str:
        """Why there are no retrieval scores, and how near the prompts came."""
        clean = self.tables["instances"][self.tables["instances"]["variant"] == CLEAN]
        best = clean.sort_values("correct", ascending=False).to_dict("records")[0]
        counts = self.answered()
        counts = counts[(counts["variant"] == CLEAN) & (counts["n"] > 0) & (counts["keep"] != "all")]
        others = "".join(f"; {row.keep} keeps {row.n}" for row in [*counts.itertuples(index=False)])
        return (
            f"None of {len(clean)} prompts passes the filter {keep!r} ({RULES[keep]}), so retrieval scores are not "
            f"applicable; the best prompt has {round(best['correct'] * best['n_answer'])} of {best['n_answer']} answer "
            f"tokens right{others}."
        )

    def retrieval_heads(self, threshold: float = RETRIEVAL_HEAD) -> pd.DataFrame:
        """Heads with a retrieval score of at least ``threshold``, the strongest first."""
        frame = self.heads.frame
        chosen = frame[frame["retrieval"] >= threshold]
        return chosen.sort_values(["retrieval", "layer", "head"], ascending=[False, True, True], ignore_index=True)


def grid_table(instances: pd.DataFrame, variants: Mapping[str, Any] | list[str], seed: int) -> pd.DataFrame:
    """The grid of all variants from the table of instances."""
    cells = instances[["length", "depth"]].drop_duplicates().sort_values(["length", "depth"])
    rows = []
    for name in variants:
        for length, depth in cells.itertuples(index=False):
            rows.append(
                {"variant": name, "length": length, "depth": depth} | _cell(instances, name, (length, depth), seed)
            )
    return pd.DataFrame(rows).astype({"variant": "str"})


def _cell(instances: pd.DataFrame, variant: str, cell: tuple[int, float], seed: int) -> dict[str, Any]:
    """Measures of one variant in one cell."""
    instances = instances[(instances["length"] == cell[0]) & (instances["depth"] == cell[1])]
    mine = instances[instances["variant"] == variant].set_index("instance").sort_index()
    n, exact = len(mine), int(mine["exact"].sum())
    low, high = wilson_interval(exact, n)
    found = {"n": n, "exact": exact / n if n else math.nan, "exact_low": low, "exact_high": high}
    found |= {"correct": mine["correct"].mean(), "rank": mine["rank"].median()}
    found |= _interval("log_prob", mine["log_prob"].to_numpy(), seed)
    clean = instances[instances["variant"] == CLEAN].set_index("instance").reindex(mine.index)
    for name in ("exact", "log_prob"):
        change = (mine[name].astype(float) - clean[name].astype(float)).to_numpy()
        found |= _interval(f"delta_{name}", change * (math.nan if variant == CLEAN else 1), seed)
    return found


def _interval(name: str, values: np.ndarray, seed: int) -> dict[str, float]:
    """A mean with its bootstrap interval as three columns."""
    found = paired_interval(values, seed=seed)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
