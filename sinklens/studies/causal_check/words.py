"""What a causal check says, in sentences made from its summary alone."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

FEW = 0.05
"""A p above this is never printed without what keeps it there."""


def causal_words(summary: pd.DataFrame, meta: Mapping[str, Any]) -> list[str]:
    """For each size: all ways side by side, each way against its controls, and warnings; then the idle heads.

    Args:
        summary: From :meth:`CausalCheck.summary`.
        meta: The result's; ``loss_spread`` is the yardstick of what harms plain text by itself.
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
    loss = ", ".join(f"{way} {by[way, 'loss'].harm + 0.0:+.2f}" for way in ways)
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
        text += f" (change {sign * row.harm + 0.0:+.2f} [{low + 0.0:+.2f}, {high + 0.0:+.2f}])"
    if not row.n_controls:
        text += "; there is no random set of equal size to compare with"
    else:
        sets = "set of as many heads changes" if row.n_controls == 1 else "sets of as many heads change"
        sd = "" if math.isnan(row.control_sd) else f", sd {row.control_sd:.2f}"
        text += f"; {row.n_controls} random disjoint {sets} it by {sign * row.control_mean + 0.0:+.2f}{sd} "
        text += f"({p_words(row.p, row.n_controls, row.n_as_large)})"
    if row.measure == "exact" and (row.n_controls or row.n_matched):
        text += _matched(row)
    if row.n_idle:
        text += f"; {row.n_idle} sets of idle heads by {abs(row.idle_mean):.2g} (p = {row.idle_p:.2g})"
    return f"{text}."


def _matched(row: Any) -> str:
    """The random sets of equal own harm."""
    if not row.n_matched:
        return f"; no random set harms plain text as much as these heads do ({row.own_harm + 0.0:+.2f} nats)"
    sets = "set" if row.n_matched == 1 else "sets"
    one = "changes" if row.n_matched == 1 else "change"
    return (
        f"; {row.n_matched} random {sets} of equal own harm ({row.matched_own + 0.0:+.2f} nats on plain text, the "
        f"tested heads {row.own_harm + 0.0:+.2f}) {one} it by {-row.matched_mean + 0.0:+.2f} "
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
                f"Warning: {way} masking of {_heads(top)} harms plain text as much as the needles ({loss:+.2f} nats a "
                f"token against {answer + 0.0:+.2f} an answer token), so it says nothing about retrieval alone."
            )
        row = by[way, "exact"]
        if spread is not None and row.n_harmful:
            found.append(
                f"Warning: {row.n_harmful:.0f} of {row.n_controls} random sets harm plain text by themselves under "
                f"{way} masking (by more than {spread:.2f} nats, half the 95 % interval of the clean loss over texts), "
                "so they are no neutral controls."
            )
    if spread is not None:
        harmful = [way for way in ways if by[way, "loss"].harm > spread]
        others = [way for way in ways if way not in harmful]
        if harmful and others:
            costs = ", ".join(f"{way} {by[way, 'loss'].harm + 0.0:+.2f}" for way in ways)
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
