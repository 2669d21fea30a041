"""What a sweep's tables say, in sentences that hold for any table: no effect, negative ones, ties, no controls."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

SAME = 1e-6
"""Changes of the loss in nats that fp32 does not tell apart: heads within it of the largest share its place."""
_NAMED = 4
ON_KEYS = ("MaskKeys", "ScaleKeys", "SlidingWindow", "CompensatedWindow", "RedistributeAttention", "CalibrateSinks")
"""Kinds of interventions that take attention from keys and leave it to others."""


def sweep_sentences(summary: pd.DataFrame, labels: Sequence[str], approx: Mapping[str, Any]) -> list[str]:
    """Sentences for each intervention: its single heads, its tested sets beside their random sets, its estimates.

    Every one is about the summary's own numbers: who raises and who lowers the loss most (all of those that share the
    place), how many intervals lie above and below 0, and how many of a set's random sets raise the loss as much.

    Args:
        summary: One row per intervention and variant, as :attr:`Sweep.summary`.
        labels: The interventions, in order.
        approx: By intervention and measure how well estimates rank heads, as in the result's header.
    """
    found = []
    for label in labels:
        rows = summary[summary["intervention"] == label]
        heads = rows[rows["kind"] == "head"].sort_values("exact", ascending=False, kind="stable")
        heads = heads.drop_duplicates("variant").sort_values(["layer", "head"], kind="stable")
        if len(heads):
            found.append(f"{label}: {_heads(heads)}")
        controlled = rows["control_n"].fillna(0) > 0
        tested = rows[controlled | rows["kind"].isin(["group", "top"])]
        found += [f"{label}: {_tested(row)}" for row in tested.to_dict("records")]
        for metric, agreement in approx.get(label, {}).items():
            what = f"estimated with exact {TITLES[metric]}"
            found.append(f"{label}: rank correlation (Spearman) of {what}: {agreement['text']}.")
    return found


def key_sentences(interventions: Mapping[str, str]) -> list[str]:
    """Which interventions act on keys, so that a sink may go elsewhere, which a sweep does not follow.

    Args:
        interventions: Their JSON by label, as in the result's header.
    """
    labels = [label for label, text in interventions.items() if any(f'"{kind}"' in text for kind in ON_KEYS)]
    if not labels:
        return []
    return [
        f"Not measured here: where the sink goes under {' and '.join(labels)}. A key that is hidden or weakened can "
        "pass it on to another token; measure_effects(model, {name: intervention}, batch) has it in sinks_after."
    ]


TITLES = {
    "delta_loss": "delta loss",
    "kl": "KL",
    "top1_agreement": "top-1 agreement",
    "delta_logit_diff": "delta logit diff",
}


def signed(value: float) -> str:
    """Three digits with a sign; 0 has none.

    >>> signed(0.0123), signed(-2.0), signed(-0.0)
    ('+0.0123', '-2', '0')
    """
    return "0" if value == 0 else f"{value:+.3g}"


def signed_interval(row: Any, name: str = "delta_loss") -> str:
    """``+0.31 [+0.25, +0.38]``; without brackets where there is no interval."""
    value, low, high = (float(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
    if math.isnan(value):
        return "n/a"
    return signed(value) if math.isnan(low) else f"{signed(value)} [{signed(low)}, {signed(high)}]"


def mean_and_sd(row: Any) -> str:
    """Mean and standard deviation of the random sets; one set has no deviation."""
    spread = row["control_sd"]
    return signed(row["control_mean"]) + ("" if math.isnan(spread) else f" ± {spread:.2g}")


def n_heads(count: int) -> str:
    """``1 head``, ``2 heads``."""
    return f"{count} head{'s' * (count != 1)}"


def _heads(heads: pd.DataFrame) -> str:
    known = heads[heads["delta_loss"].notna()]
    missing = len(heads) - len(known)
    without = f" ({n_heads(missing)} without a value)" if missing else ""
    if known.empty:
        return f"the change of the loss is not applicable to any of {n_heads(len(heads))}."
    values = known["delta_loss"]
    low, high = float(values.min()), float(values.max())
    of = f"of {n_heads(len(known))}{without}"
    if max(-low, high) <= SAME:
        return f"{of} none changes the loss by more than {SAME:g} nats."
    ends = [] if high > SAME or len(known) == 1 else ["none raises the loss"]
    for sign, verb in ((1, "raise"), (-1, "lower")):
        tied = known[sign * values >= max(sign * high, sign * low) - SAME]
        if sign * tied["delta_loss"].iloc[0] > SAME:
            ends.append(_most(tied, verb, "it" if ends else "the loss"))
    return f"{of} {'; '.join(ends)}.{_intervals(known)}"


def _most(tied: pd.DataFrame, verb: str, what: str) -> str:
    """Who changes the loss most in one direction; several share the place by size, not by their order."""
    shown = tied.head(_NAMED).to_dict("records")
    names = [row["variant"] + ("" if row["exact"] else " (estimated)") for row in shown]
    if len(tied) == 1:
        return f"{names[0]} {verb}s {what} most: {signed_interval(shown[0])} nats"
    more = f" and {len(tied) - _NAMED} more" if len(tied) > _NAMED else ""
    each = signed(float(tied["delta_loss"].mean()))
    return f"{', '.join(names)}{more} share the place of those that {verb} {what} most: {each} nats each"


def _intervals(known: pd.DataFrame) -> str:
    """How many intervals lie above and below 0."""
    low, high = known["delta_loss_low"], known["delta_loss_high"]
    count = int(low.notna().sum())
    if not count:
        return " No head has an interval."
    above, below = int((low > 0).sum()), int((high < 0).sum())
    none = "" if count == len(known) else f", {len(known) - count} have none"
    return (
        f" The 95 % interval lies above 0 for {above}, below for {below} and holds 0 for {count - above - below}{none}."
    )


def _tested(row: dict[Any, Any]) -> str:
    what = f"{row['variant']} ({n_heads(row['k'])})"
    n = 0 if pd.isna(row["control_n"]) else int(row["control_n"])
    if math.isnan(row["delta_loss"]):
        return f"{what} has no change of the loss (not applicable)."
    change = f"{what} changes the loss by {signed_interval(row)} nats"
    if not n:
        return f"{change}; there are no random sets to compare it with."
    reach = round(row["control_p"] * (n + 1)) - 1
    sets = f"{n} random set{'s' * (n > 1)} of as many heads by {mean_and_sd(row)}"
    lies = "lies" if reach == 1 else "lie"
    return f"{change}, {sets}; {reach} of {n} {lies} as high or higher (one-sided p = {row['control_p']:.2g})."
