"""Policies side by side on one model: what each read, what it kept of the attention, and what that cost."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sinklens.evidence.bootstrap import paired_interval
from sinklens.results.result import Result
from sinklens.studies.policies.needle_summary import needle_sentences
from sinklens.wording import changed

FORMAT = "sinklens-policies"
WORK = "comparison of policies"
MORE = 1.05
"""Keys really read, in budgets, above which a rule is not ranked with the others of its budget."""
ENOUGH = 0.1
"""Share of the attention from which the first four tokens are worth a sentence."""
MEASURES = ("delta_loss", "kl", "top1_agreement")


@dataclass(frozen=True)
class PolicyComparison(
    Result,
    format=FORMAT,
    title="Comparison of policies",
    newest=1,
    needs=("summary", "sequences", "heads"),
    header=("policies", "spec", "settings"),
):
    """What policies read, kept and cost on the same rows of the same texts.

    ``summary``, one row per policy in the order given: ``policy``, ``rule`` (its name, or its label where it runs
    once), ``budget`` (keys asked for, missing where the fields were given), ``scope``, ``group``, ``untrained`` (a rule
    for models that are trained with it, and nothing says that this one was), ``kept`` (mean keys
    that a head reads for a row: the realised budget), ``density`` (of those it could see), ``held`` and ``peak`` (keys
    that a cache holds per KV head, mean and largest), ``mib`` (such caches of all layers, few-bit keys as few bits;
    missing where that is not known), ``loss`` in nats per token, ``delta_loss`` against full attention, ``kl`` and
    ``top1_agreement``, each with ``_low`` and ``_high`` (bootstrap over texts), ``mass`` (share of the attention kept,
    while the rule acts in all layers), ``mass_post_hoc`` (of the unchanged model's attention), ``first_mass`` and
    ``first_kept`` (share of the first four tokens, and what stays).

    ``needle_summary`` and ``needles`` (where needles were asked): the same by policy, and every answer; full attention
    stands in ``needles`` under an empty name. ``needle_exact``, ``needle_rank``, ``delta_needle_log_prob`` with its
    interval over prompts, ``needle_mass`` (attention of the answer's rows to the needle before the rule acts in a
    layer) and ``needle_kept`` (what of it is left).

    ``sequences``: loss, KL and agreement of every policy and text. ``heads``: what every head kept under every policy.

    Attributes:
        meta: Model, tokens, policies as JSON, definitions, settings.
        tables: By name.
    """

    @property
    def summary(self) -> pd.DataFrame:
        """One row per policy, see the class."""
        return self.tables["summary"].copy()

    @property
    def verdict(self) -> list[str]:
        """Which rule costs least, which most, and whether the kept attention tells."""
        needles = needle_sentences(self.tables["needle_summary"]) if "needle_summary" in self.tables else []
        return [*comparison_sentences(self.tables["summary"]), *needles]


def summarise_policies(
    sequences: pd.DataFrame, heads: pd.DataFrame, caches: pd.DataFrame, claims: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """The table ``summary`` from what was measured by sequence, head and KV head.

    Args:
        sequences: Rows by policy and sequence.
        heads: Rows by policy, layer and head.
        caches: Rows by policy, layer and KV head: held, peak, bytes_per_key.
        claims: Rows by policy: rule, budget, scope, group.
        seed: Of the bootstrap.
    """
    rows = []
    for claim in claims.to_dict("records"):
        name = claim["policy"]
        own, by_head = sequences[sequences["policy"] == name], heads[heads["policy"] == name]
        cache = caches[caches["policy"] == name]
        row = claim | {"n_sequences": len(own), "n_tokens": int(own["n_tokens"].sum())}
        row |= {column: float(by_head[column].mean()) for column in ("kept", "density")}
        row |= {"held": float(cache["held"].mean()), "peak": float(cache["peak"].max())}
        row["mib"] = float((cache["held"] * cache["bytes_per_key"]).sum(skipna=False)) / 2**20
        row |= {column: float(own[column].mean()) for column in ("clean_loss", "loss")}
        for column in MEASURES:
            interval = paired_interval(own[column].to_numpy(dtype=np.float64), seed=seed)
            row |= {column: interval.value, f"{column}_low": interval.low, f"{column}_high": interval.high}
        row |= {
            column: float(by_head[column].mean()) for column in ("mass", "mass_post_hoc", "first_mass", "first_kept")
        }
        rows.append(row)
    return pd.DataFrame(rows)


def comparison_sentences(summary: pd.DataFrame) -> list[str]:
    """What a comparison says, recomputable from its summary.

    Rules are ranked among those of one budget, as long as they really read no more than that. Not ranked are rules
    whose counted rows read everything, those of scope "global", which know what comes later, and those that belong to
    models that are trained with them.
    """
    summary = summary if "untrained" in summary else summary.assign(untrained=False)
    honest, untrained = summary["scope"] != "global", summary["untrained"].astype(bool)
    whole = summary["density"] >= 1 - 1e-9
    fair = summary[honest & ~untrained & ~whole]
    found = []
    if fair.empty:
        found.append("No policy that drops keys without looking ahead was compared, so there is nothing to rank.")
    for _, rows in fair.groupby("budget", sort=True, dropna=False):
        asked = float(rows["budget"].fillna(math.inf).iloc[0])
        where = "" if asked == math.inf else f"At a budget of {asked:.0f} keys: "
        over = rows["kept"] > asked * MORE
        if not over.all():
            found += _ranked(rows[~over].to_dict("records"), where)
        if over.any():
            named = [f"{row['policy']} ({row['kept']:.3g})" for row in rows[over].to_dict("records")]
            found.append(f"{where}not ranked, because they really read more keys: {', '.join(named)}.")
    first = fair[fair["first_mass"] > ENOUGH]
    drops = first[first["first_kept"] < 0.5 * first["first_mass"]]
    if not drops.empty:
        found.append(
            f"The first four tokens hold {drops['first_mass'].max():.0%} of the attention at most under "
            f"{', '.join(drops['policy'])}, which read less than half of that."
        )
    found += _unranked(summary[honest & ~untrained & whole], summary[honest & untrained])
    leaks = summary[~honest]
    if not leaks.empty:
        found.append(f"{', '.join(leaks['policy'])} chose by what comes later; the loss there means nothing.")
    return found


def _unranked(whole: pd.DataFrame, untrained: pd.DataFrame) -> list[str]:
    """Rules that let every counted row read everything, and rules without the training that they need."""
    found = []
    idle = (whole["kl"] == 0) & (whole["delta_loss"] == 0)
    busy = [f"{row['policy']} ({_change(row)})" for row in whole[~idle].to_dict("records")]
    if busy:
        found.append(f"Not ranked, because all rows that count read everything: {', '.join(busy)}.")
    names = [name for name in whole[idle]["policy"] if name != "full"]
    if names:
        found.append(
            f"{', '.join(names)} {'changes' if len(names) == 1 else 'change'} nothing on texts of this length."
        )
    named = [f"{row['policy']} ({_change(row)})" for row in untrained.to_dict("records")]
    if named:
        found.append(
            f"Not ranked, because made for models that are trained with such a rule, as nothing says of this one: "
            f"{', '.join(named)}."
        )
    return found


def _ranked(rows: list[dict[Hashable, Any]], where: str) -> list[str]:
    best, worst = min(rows, key=_cost), max(rows, key=_cost)
    most = max(rows, key=lambda row: float(row["mass"]))
    if len(rows) == 1:
        return [f"{where}{best['policy']} costs {_change(best)} and reads {best['kept']:.3g} keys a row."]
    found = [
        f"{where}{best['policy']} costs least of {len(rows)} rules, {_change(best)} with {best['kept']:.3g} keys a "
        f"row; {worst['policy']} costs most, {_change(worst)} with {worst['kept']:.3g}."
    ]
    high = best["delta_loss_high"]
    near = [row for row in rows if row is not best and row["delta_loss"] <= high]
    if near:
        others = ", ".join(str(row["policy"]) for row in near)
        found.append(f"{where}{'within' if where else 'Within'} its interval lie {others}.")
    if most is not best and most not in near:
        found.append(
            f"{where}{'kept' if where else 'Kept'} attention does not rank the loss: {most['policy']} keeps the most, "
            f"{most['mass']:.1%}, and costs {_change(most)}, while {best['policy']} keeps {best['mass']:.1%}."
        )
    return found


def _cost(row: dict[Hashable, Any]) -> float:
    return float(row["delta_loss"])


def _change(row: dict[Hashable, Any]) -> str:
    return changed(row["delta_loss"], row["delta_loss_low"], row["delta_loss_high"], 3, " nats a token")
