"""The result of a causal check: what masking the tested heads did, among masking as many random ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.controls import ControlComparison, compare_with_controls
from sinklens.results.result import Result
from sinklens.studies.causal_check.words import causal_words

MEASURES: Mapping[str, tuple[str, int]] = {
    "exact": ("share of needles whose whole answer is the model's first choice", -1),
    "log_prob": ("mean log-probability of an answer token, in nats", -1),
    "loss": ("mean next-token loss on plain text, in nats", 1),
}
"""Measures with their definition, and whether harm is a rise (1) or a fall (-1)."""


@dataclass(frozen=True)
class CausalCheck(Result, format="sinklens-causal-check", title="Causal check", newest=2, needs=("sets", "instances")):
    """What masking sets of heads does to needles and to plain text.

    Attributes:
        meta: Model, needles, texts, heads, definitions, settings, warnings.
        tables: ``sets``, ``instances`` and ``summary``, see the properties.
    """

    @property
    def sets(self) -> pd.DataFrame:
        """One row per masked set and measure.

        Columns: way (``"zero"``, ``"mean"``, ``"uniform"``), top (how many heads were tested), kind (``"tested"``,
        ``"random"``, ``"matched"``: random of equal own harm, ``"idle"``), draw, heads, measure, clean, value and harm
        (positive = worse: fall of exact match or log-probability, rise of the loss), with ``harm_low`` and
        ``harm_high``, a 95 % bootstrap interval over
        instances.
        """
        return self.tables["sets"]

    @property
    def instances(self) -> pd.DataFrame:
        """One row per way, size, set, measure and instance (needle or text): value."""
        return self.tables["instances"]

    def summary(self) -> pd.DataFrame:
        """One row per way, size and measure: the tested heads among their random controls.

        Columns: way, top, measure, clean, tested, harm with its interval; own_harm, the rise of the loss on plain text
        under the same mask. n_controls, control_mean and control_sd of the controls' harm, control_own (mean of their
        own harm), n_harmful (controls that harm plain text by themselves: a rise of more than ``loss_spread``, half the
        width of the clean loss' 95 % interval over texts), rank of the tested harm (1 = the largest), n_as_large
        (controls whose harm is at least as large) and the one-sided p, ``(1 + n_as_large) / (n_controls + 1)``;
        n_matched, matched_mean, matched_sd, matched_own, matched_as_large and matched_p, the same for random sets of
        equal own harm (NaN for the loss, by which they were chosen); n_idle, idle_mean and idle_p for sets of idle
        heads. NaN where there is no such set.
        """
        rows = []
        by_loss = self.sets[self.sets["measure"] == "loss"]
        names = zip(*(by_loss[name] for name in ("way", "top", "kind", "heads")), strict=True)
        loss = dict(zip(names, by_loss["harm"].astype(float), strict=True))
        spread = self.meta.get("loss_spread")
        for (way, top, measure), group in self.sets.groupby(["way", "top", "measure"], sort=False):
            tested = group[group["kind"] == "tested"].iloc[0]
            row = {"way": way, "top": top, "measure": measure}
            row |= {name: tested[name] for name in ("clean", "value", "harm", "harm_low", "harm_high")}
            row["own_harm"] = loss[way, top, "tested", tested["heads"]]
            kinds: dict[str, tuple[ControlComparison, pd.Series]] = {}
            for kind in ("random", "matched", "idle"):
                mine = group[group["kind"] == kind]
                own = pd.Series([loss[way, top, kind, heads] for heads in mine["heads"]], dtype=float)
                harms = [] if kind == "matched" and measure == "loss" else mine["harm"].tolist()
                kinds[kind] = compare_with_controls(float(tested["harm"]), harms), own
            random, own = kinds["random"]
            row |= {"n_controls": random.n, "control_mean": random.mean, "control_sd": random.sd}
            row |= {"control_own": own.mean(), "n_harmful": math.nan if spread is None else int((own > spread).sum())}
            row |= {"rank": random.rank, "n_as_large": random.n_as_large, "p": random.p}
            matched, own = kinds["matched"]
            row |= {"n_matched": matched.n, "matched_mean": matched.mean, "matched_sd": matched.sd}
            row |= {"matched_own": own.mean(), "matched_as_large": matched.n_as_large, "matched_p": matched.p}
            idle, _ = kinds["idle"]
            rows.append(row | {"n_idle": idle.n, "idle_mean": idle.mean, "idle_p": idle.p})
        return pd.DataFrame(rows).rename(columns={"value": "tested"})

    @property
    def verdict(self) -> list[str]:
        """What was found, in sentences: the ways side by side, each against its controls, and what is amiss."""
        return causal_words(self.summary(), self.meta)


def with_harm(instances: pd.DataFrame, clean: Mapping[str, pd.Series], seed: int) -> pd.DataFrame:
    """One row per set and measure: means, and the harm with its interval, paired by instance.

    Args:
        instances: way, top, kind, draw, heads, measure, instance, value.
        clean: By measure the value of each instance under the unchanged model.
        seed: Of the bootstrap.
    """
    rows = []
    keys = ["way", "top", "kind", "draw", "heads", "measure"]
    for key, group in instances.groupby(keys, sort=False, dropna=False):
        before = clean[str(key[-1])].loc[group["instance"]].to_numpy(dtype=float)
        harm = MEASURES[str(key[-1])][1] * (group["value"].to_numpy(dtype=float) - before)
        interval = paired_interval(harm, seed=seed)
        found = dict(zip(keys, key, strict=True)) | {"clean": before.mean(), "value": group["value"].mean()}
        rows.append(found | {"harm": interval.value, "harm_low": interval.low, "harm_high": interval.high})
    return pd.DataFrame(rows).astype({"draw": "Int64"})
