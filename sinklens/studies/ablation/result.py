"""The result of a sweep: effects by sequence, their summary with intervals and controls, and what they say."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sinklens.errors import InputError
from sinklens.evidence.controls import compare_with_controls
from sinklens.evidence.summary import MEASURES, summarise
from sinklens.results.result import Result
from sinklens.results.table import Table
from sinklens.studies.ablation.sentences import (
    SAME,
    TITLES,
    key_sentences,
    mean_and_sd,
    signed_interval,
    sweep_sentences,
)
from sinklens.studies.ablation.variants import Variant

FORMAT, WORK = "sinklens-sweep", "sweep"
IDENTITY = ("intervention", "variant", "kind", "k", "draw", "heads", "layer", "head", "exact", "control_of")


@dataclass(frozen=True)
class Sweep(
    Result,
    format=FORMAT,
    title="Sweep of head ablations",
    newest=1,
    needs=("summary", "effects"),
    header=("interventions", "spec", "settings"),
):
    """What interventions on sets of heads did to a model's predictions.

    Attributes:
        meta: Model, tokens with BOS provenance, interventions as JSON, definitions, settings, warnings; with
            ``approx`` the measured rank correlation of the estimates by intervention.
        tables: ``effects`` and ``summary``; the properties below wrap them.
    """

    @property
    def effects(self) -> Table:
        """One row per intervention, variant and sequence.

        Columns: intervention, variant (``L0H3``, a group's name, ``top-4``, ``random-4/3``), kind (head, group, top,
        random), k (number of heads), draw (of a random set), heads, layer and head (of single heads), exact (False
        for estimates by attribution, which have delta_loss and delta_logit_diff alone), control_of (the variant that a
        random set is the control of), sequence, n_tokens (predicted ones), clean_loss, loss, delta_loss, kl,
        top1_agreement, clean_logit_diff, logit_diff, delta_logit_diff. Losses and KL in nats, NaN where not applicable.
        """
        return Table("effects", self.tables["effects"])

    @property
    def summary(self) -> Table:
        """One row per intervention and variant.

        The identifying columns of :attr:`effects`, n_sequences, n_tokens, mean clean_loss and loss; mean and 95 %
        interval over sequences (``X``, ``X_low``, ``X_high``) of delta_loss, kl, top1_agreement and delta_logit_diff,
        with ``note`` where an interval is not BCa; and for sets with random controls control_mean, control_sd and
        control_n of their delta_loss, control_rank (of the tested set among itself and them, 1 = the largest) and
        control_p, the share of those that are at least as large.
        """
        return Table("summary", self.tables["summary"])

    def ranking(self, intervention: str | None = None, by: str = "delta_loss") -> pd.DataFrame:
        """Single heads of one intervention, what raises the loss most first; exact values where there are both.

        By KL the largest first too, by top-1 agreement or logit difference the lowest. Heads that are equal stand in
        the order of layers: a place in this table is no rank.

        Raises:
            InputError: No such intervention or column.
        """
        table = self.tables["summary"]
        labels = list(self.meta["interventions"])
        label = intervention or labels[0]
        if label not in labels:
            raise InputError(f"There is no intervention {label!r} in this sweep; there are {', '.join(labels)}.")
        if by not in MEASURES:
            raise InputError(f"A ranking goes by one of {', '.join(MEASURES)}, not by {by!r}.")
        heads = table[(table["kind"] == "head") & (table["intervention"] == label)]
        heads = heads.sort_values("exact", ascending=False, kind="stable").drop_duplicates("variant")
        order = ["layer", "head"]
        ascending = by in ("top1_agreement", "delta_logit_diff")  # there the smallest is the strongest
        return heads.sort_values([by, *order], ascending=[ascending, True, True], kind="stable", ignore_index=True)

    def short_tables(self) -> dict[str, pd.DataFrame]:
        """The strongest heads and all tested sets of each intervention."""
        return {label: short_table(self, label) for label in self.meta["interventions"]}

    @property
    def verdict(self) -> list[str]:
        """What was found, and where to look for what a sweep does not measure; see the module ``sentences``."""
        found = sweep_sentences(self.tables["summary"], list(self.meta["interventions"]), self.meta["approx"])
        return found + key_sentences(self.meta["interventions"])


def assemble(
    measured: pd.DataFrame, variants: Mapping[str, Sequence[tuple[Variant, bool]]], seed: int
) -> dict[str, pd.DataFrame]:
    """The two tables from what was measured.

    Args:
        measured: By intervention, heads (names), exact and sequence; each set once.
        variants: By intervention the variants in order, each with whether it is exact.
        seed: Of the bootstrap.
    """
    rows = [
        {
            "intervention": label,
            "variant": variant.name,
            "kind": variant.kind,
            "k": len(variant.heads),
            "draw": variant.draw,
            "heads": variant.head_names,
            "layer": variant.heads[0][0] if len(variant.heads) == 1 and variant.kind == "head" else None,
            "head": variant.heads[0][1] if len(variant.heads) == 1 and variant.kind == "head" else None,
            "exact": exact,
            "control_of": variant.control_of,
        }
        for label, listed in variants.items()
        for variant, exact in listed
    ]
    identity = pd.DataFrame(rows, columns=IDENTITY)
    identity = identity.astype({"draw": "Int64", "layer": "Int64", "head": "Int64", "exact": "bool"})
    identity["control_of"] = identity["control_of"].astype("str")
    identity["order"] = range(len(identity))
    effects = identity.merge(measured, on=["intervention", "heads", "exact"], how="left", validate="many_to_many")
    effects = effects.sort_values(["order", "sequence"], kind="stable", ignore_index=True)
    summary = summarise(effects, ["order"], seed=seed)
    estimated = effects.groupby("order", sort=False)["delta_loss"].count()
    summary["n_sequences"] = estimated.to_numpy()  # estimates have no loss to count
    summary = identity.merge(summary, on="order").drop(columns="order")
    return {"effects": effects.drop(columns="order"), "summary": _with_controls(summary)}


def _with_controls(summary: pd.DataFrame) -> pd.DataFrame:
    random = summary[summary["kind"] == "random"].groupby(["intervention", "control_of"])["delta_loss"]
    controls = {key: values.to_numpy() for key, values in random}
    compared = [
        compare_with_controls(row["delta_loss"], controls.get((row["intervention"], row["variant"]), ()), tie=SAME)
        if row["kind"] != "random" and row["exact"]
        else None
        for row in summary.to_dict("records")
    ]
    for name in ("mean", "sd", "n", "rank", "p"):
        values = [getattr(each, name) if each is not None and each.n else math.nan for each in compared]
        summary[f"control_{name}"] = pd.Series(values, index=summary.index, dtype="float64")
    summary["control_n"] = summary["control_n"].astype("Int64")
    return summary


def short_table(sweep: Sweep, intervention: str, count: int = 10, metrics: Sequence[str] = MEASURES) -> pd.DataFrame:
    """The heads with the largest effects of an intervention, then its tested sets, in a table to read.

    Args:
        sweep: The result.
        intervention: Which one.
        count: How many heads.
        metrics: Columns to show; the first one orders the heads: the largest size of a change (in either direction),
            the largest KL, the lowest top-1 agreement.
    """
    summary = sweep.tables["summary"]
    heads = largest_effects(sweep.ranking(intervention, metrics[0]), metrics[0]).head(count)
    sets = summary[(summary["intervention"] == intervention) & summary["kind"].isin(["group", "top"])]
    rows = []
    for row in [*heads.to_dict("records"), *sets.to_dict("records")]:
        short = {"variant": row["variant"] if row["exact"] else f"{row['variant']} (estimate)"}
        short |= {TITLES[name]: _cell(row, name) for name in metrics}
        if "delta_loss" in metrics and not pd.isna(row["control_n"]):
            short["random sets, delta loss"] = mean_and_sd(row)
            short["rank"] = f"{row['control_rank']:g} of {row['control_n'] + 1}"
        rows.append(short)
    return pd.DataFrame(rows).fillna("")


def largest_effects(ranking: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A ranking by size: changes that lower the loss stand with those that raise it as much."""
    size = ranking[metric].abs() if metric.startswith("delta") else ranking[metric]
    ascending = metric == "top1_agreement"
    return ranking.loc[size.sort_values(ascending=ascending, kind="stable").index]


def _cell(row: Any, name: str) -> str:
    """A mean with its interval; changes carry their sign."""
    if name.startswith("delta"):
        return signed_interval(row, name)
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if np.isnan(value):
        return "n/a"
    return f"{value:.3g}" if np.isnan(low) else f"{value:.3g} [{low:.3g}, {high:.3g}]"
