"""The result of a causal check: what masking the tested heads did, among masking as many random ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.controls import ControlComparison, compare_with_controls
from sinklens.results.result import Result
from sinklens.studies.path_patching.result import set_words
from sinklens.wording import several

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
        tables: ``sets``, ``instances`` and ``summary``, and ``patched`` where it was asked for; see the properties.
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

    @property
    def patched(self) -> pd.DataFrame | None:
        """One row per set exchanged between the needles and the same with another answer; None without ``patching``.

        Columns: top, kind (tested, random), draw, heads, necessity and sufficiency, each with low and high over
        needles: the share of what tells both kinds of prompts apart that is lost, or comes back.
        """
        return self.tables.get("patched")

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

        With ``patching`` also necessity and sufficiency (the same for all ways and measures of a size), each with
        low, high, random (mean of the random sets) and p.
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
            row |= {"n_idle": idle.n, "idle_mean": idle.mean, "idle_p": idle.p}
            rows.append(row | ({} if self.patched is None else _exchanged(self.patched, top)))
        return pd.DataFrame(rows).rename(columns={"value": "tested"})

    @property
    def verdict(self) -> list[str]:
        """What was found, in sentences: the ways side by side, each against its controls, and what is amiss."""
        return causal_words(self.summary(), self.meta, self.patched)


def _exchanged(patched: pd.DataFrame, top: object) -> dict[str, float]:
    """The tested set of a size among the random ones, by patching."""
    mine = patched[patched["top"] == top]
    tested, random = mine[mine["kind"] == "tested"].iloc[0], mine[mine["kind"] == "random"]
    found: dict[str, float] = {}
    for name in ("necessity", "sufficiency"):
        beside = compare_with_controls(float(tested[name]), random[name])
        found |= {each: float(tested[each]) for each in (name, f"{name}_low", f"{name}_high")}
        found |= {f"{name}_random": beside.mean, f"{name}_p": beside.p}
    return found


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


FEW = 0.05
"""A p above this is never printed without what keeps it there."""


def causal_words(summary: pd.DataFrame, meta: Mapping[str, Any], patched: pd.DataFrame | None = None) -> list[str]:
    """For each size: all ways side by side, each way against its controls, and warnings; then the idle heads.

    Args:
        summary: From :meth:`CausalCheck.summary`.
        meta: The result's; ``loss_spread`` is the yardstick of what harms plain text by itself.
        patched: From :attr:`CausalCheck.patched`.
    """
    spread = meta.get("loss_spread")
    out = []
    for top in summary["top"].unique().tolist():
        rows = summary[summary["top"] == top]
        by = {(row.way, row.measure): row for row in [*rows.itertuples(index=False)]}
        ways = [str(way) for way in rows["way"].unique()]
        out.append(_side_by_side(top, ways, by, meta))
        out += [_against_controls(by[way, measure]) for measure in ("exact", "loss") for way in ways]
        out += _warnings(top, ways, by, spread)
        if patched is not None:
            here = patched[patched["top"] == top]
            tested: Any = next(here[here["kind"] == "tested"].itertuples())
            words = set_words(tested, here[here["kind"] == "random"])
            out.append(f"Patching {_heads(top)} between needles and the same needles with another answer: {words}.")
    idle = meta["idle_heads"]
    if idle["heads"]:
        out.append(
            f"{len(idle['heads'])} idle heads (W_O = 0: {', '.join(idle['heads'][:6])}"
            f"{', ...' if len(idle['heads']) > 6 else ''}) are the valid pool of random heads: masking all of them "
            f"changes the logits by at most {idle['max_logit_change']:g}."
        )
    else:
        out.append("The model has no idle heads (W_O = 0), so every random set holds heads that do something.")
    return out


def p_words(p: float, n: int, as_large: float) -> str:
    """A one-sided p among n controls with what it rests on: how many reach the tested harm, or that n allow no less.

    >>> p_words(0.5, 1, 0)
    'p = 0.5: no control does as much harm, and 1 control allows no smaller p'
    >>> p_words(4 / 11, 10, 3)
    'p = 0.36: 3 of 10 controls do as much harm'
    """
    if as_large:
        return (
            f"p = {p:.2g}: {as_large:.0f} of {n} control{'s' if n > 1 else ''} do{'es' if n == 1 else ''} as much harm"
        )
    floor = "" if p <= FEW else f", and {n} control{'s allow' if n > 1 else ' allows'} no smaller p"
    return f"p = {p:.2g}: no control does as much harm{floor}"


def _heads(top: int) -> str:
    return f"the top {top} heads" if top > 1 else "the top head"


def _side_by_side(top: int, ways: list[str], by: Any, meta: Mapping[str, Any]) -> str:
    exact = ", ".join(f"{way} {by[way, 'exact'].tested:.2f}" for way in ways)
    loss = ", ".join(f"{way} {by[way, 'loss'].harm:+z.2f}" for way in ways)
    first = ways[0]
    on = f" on {meta['n_needles']} needles" if "n_needles" in meta else ""
    return (
        f"Masking {_heads(top)}: exact match{on} from {by[first, 'exact'].clean:.2f} to {exact}; loss on plain text "
        f"from {by[first, 'loss'].clean:.2f} by {loss} nats a token."
    )


def _against_controls(row: Any) -> str:
    what = {"exact": "exact match", "loss": "loss on plain text"}[row.measure]
    sign = -1 if row.measure == "exact" else 1
    text = f"{row.way} masking of {_heads(row.top)}: {what} {row.clean:.2f} -> {row.tested:.2f}"
    if not math.isnan(row.harm_low):
        low, high = sorted((sign * row.harm_low, sign * row.harm_high))
        text += f" (change {sign * row.harm:+z.2f} [{low:+z.2f}, {high:+z.2f}])"
    if not row.n_controls:
        text += "; there is no random set of equal size to compare with"
    else:
        sets = "set of as many heads changes" if row.n_controls == 1 else "sets of as many heads change"
        sd = "" if math.isnan(row.control_sd) else f", sd {row.control_sd:.2f}"
        text += f"; {row.n_controls} random disjoint {sets} it by {sign * row.control_mean:+z.2f}{sd} "
        text += f"({p_words(row.p, row.n_controls, row.n_as_large)})"
    if row.measure == "exact" and (row.n_controls or row.n_matched):
        text += _matched(row)
    if row.n_idle:
        text += f"; {row.n_idle} sets of idle heads by {abs(row.idle_mean):.2g} (p = {row.idle_p:.2g})"
    return f"{text}."


def _matched(row: Any) -> str:
    """The random sets of equal own harm."""
    if not row.n_matched:
        return f"; no random set harms plain text as much as these heads do ({row.own_harm:+z.2f} nats)"
    sets = "set" if row.n_matched == 1 else "sets"
    one = "changes" if row.n_matched == 1 else "change"
    return (
        f"; {row.n_matched} random {sets} of equal own harm ({row.matched_own:+z.2f} nats on plain text, the "
        f"tested heads {row.own_harm:+z.2f}) {one} it by {-row.matched_mean:+z.2f} "
        f"({p_words(row.matched_p, row.n_matched, row.matched_as_large)})"
    )


def _warnings(top: int, ways: list[str], by: Any, spread: float | None) -> list[str]:
    """Masks and controls that harm by themselves."""
    found = []
    for way in ways:
        loss, answer = by[way, "loss"].harm, by[way, "log_prob"].harm
        low = by[way, "loss"].harm_low
        if loss >= answer and (loss > 0 if math.isnan(low) else low > 0):
            found.append(
                f"Warning: {way} masking of {_heads(top)} harms plain text as much as the needles ({loss:+z.2f} nats a "
                f"token against {answer:+z.2f} an answer token), so it says nothing about retrieval alone."
            )
        row = by[way, "exact"]
        if spread is not None and row.n_harmful:
            one = row.n_harmful == 1
            found.append(
                f"Warning: {row.n_harmful:.0f} of {several(row.n_controls, 'random set')} "
                f"{'harms plain text by itself' if one else 'harm plain text by themselves'} under {way} masking (by "
                f"more than {spread:.2f} nats, half the 95 % interval of the clean loss over texts), so "
                f"{'it is no neutral control' if one else 'they are no neutral controls'}."
            )
    if spread is not None:
        harmful = [way for way in ways if by[way, "loss"].harm > spread]
        others = [way for way in ways if way not in harmful]
        if harmful and others:
            costs = ", ".join(f"{way} {by[way, 'loss'].harm:+z.2f}" for way in ways)
            why = (
                "; uniform attention makes a head that rests on its sink write the average of all values"
                if harmful == ["uniform"]
                else ""
            )
            found.append(
                f"Warning: the ways of masking {_heads(top)} do not agree on plain text ({costs} nats a token){why}: "
                f"{' and '.join(harmful)} masking {'is' if len(harmful) == 1 else 'are'} not neutral here."
            )
    return found
