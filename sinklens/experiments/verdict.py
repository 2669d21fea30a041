"""A census in words: what was found and, as plainly, what was not."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

SINK_HEAD_RATE = 0.5
SINK_HEAD_RATIO = 2.0
DRAINED = 0.5
PEAK = 3.0
MILD_PEAK = 1.5


def describe(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[str]:
    """Sentences: sinks, drains, residual peaks, massive activations, virtual and secondary sinks, domains.

    A head counts as a sink head when its strongest key has ``sink_rate >= 0.5`` and at least twice the importance of
    uniform attention; a drain is a norm ratio below 0.5, a peak a ratio of at least 3 and a mild one of at least 1.5.
    """
    sentences = []
    if "heads" in tables:
        sentences += _sinks(tables["heads"], tables["tokens"], settings)
        sentences += _drains(tables["heads"])
    if "resid_ratio" in tables["layers"]:
        sentences += _peaks(tables["layers"])
    if "massive" in tables:
        sentences += _massive(tables["layers"], tables["massive_lifetimes"])
    if "heads" in tables:
        sentences += _virtual(tables["heads"])
    if "secondary_sinks" in tables:
        sentences += _secondary(tables["secondary_sinks"])
    if "domains" in tables:
        sentences += _domains(tables["domains"])
    return sentences


def _sinks(heads: pd.DataFrame, tokens: pd.DataFrame, settings: Mapping[str, Any]) -> list[str]:
    if heads.empty:
        return ["Attention sinks are not applicable: no block of this model has softmax attention."]
    eps = settings["eps"]
    found = heads[heads["is_sink"]]
    if found.empty:
        best = _row(heads, heads["importance_first"].idxmax())
        top = _row(heads, heads["sink_rate"].idxmax())
        return [
            f"No attention sink: no head gives any one key position more than {eps} of its attention in half of the "
            f"sequences. Position 0 receives at most {best.importance_first:.3f} ({_name(best)}, "
            f"{best.importance_first / best.null_first:.1f} times uniform attention); the highest sink rate anywhere "
            f"is {top.sink_rate:.2f} ({_name(top)} at position {top.sink_position})."
        ]
    out = []
    groups: list[tuple[Any, pd.DataFrame]] = list(found.groupby("sink_position"))
    for position, group in sorted(groups, key=lambda item: -len(item[1])):
        best = _row(group, group["sink_rate"].idxmax())
        verb = "gives" if len(group) == 1 else "give"
        out.append(
            f"Position {position}{_what(tokens, int(position))} is an attention sink: {len(group)} of {len(heads)} "
            f"heads ({_list(group)}) {verb} it more than {eps} of their attention in at least half of the sequences. "
            f"Strongest: {_name(best)}, sink rate {best.sink_rate:.2f}, importance {best.importance:.2f}, "
            f"{best.ratio:.1f} times uniform attention."
        )
    return out


def _drains(heads: pd.DataFrame) -> list[str]:
    if "drain" not in heads or not len(heads) or not heads["is_sink"].any():
        return []
    sinks = heads[heads["is_sink"]]
    measure, label = ("drain_wo", "|W_O v|") if sinks["drain_wo"].notna().all() else ("drain", "|v|")
    drained = sinks[sinks[measure] < DRAINED]
    span = _span(sinks[measure])
    if drained.empty:
        return [f"No value-state drain: {label} of the sink is {span} times the other tokens' in the sink heads."]
    return [
        f"Value-state drain in {len(drained)} of {len(sinks)} sink heads: {label} of the sink is {span} times the "
        f"other tokens' (smallest in {_name(_row(sinks, sinks[measure].idxmin()))})."
    ]


def _peaks(layers: pd.DataFrame) -> list[str]:
    blocks = layers[layers["layer"] >= 0]
    if blocks["resid_ratio"].isna().all():
        return []
    peak = _row(blocks, blocks["resid_ratio"].idxmax())
    start = _row(layers, layers["layer"].idxmin())
    largest = _row(blocks, blocks["resid_norm_first"].idxmax())
    kind = "Residual peak" if peak.resid_ratio >= PEAK else "Mild residual peak"
    size = f"after block {peak.layer} its residual norm is {peak.resid_ratio:.1f} times the other tokens'"
    if peak.resid_ratio >= MILD_PEAK:
        headline = f"{kind} at position 0: {size}."
    else:
        headline = f"No residual peak at position 0: at most, {size}."
    reached = ""
    if largest.layer != peak.layer:
        reached = f", and reaches {largest.resid_norm_first:.3g} after block {largest.layer}"
    return [
        f"{headline} Growth: its norm goes from {start.resid_norm_first:.3g} before the first block to "
        f"{peak.resid_norm_first:.3g} after block {peak.layer} (x{peak.resid_norm_first / start.resid_norm_first:.1f}; "
        f"the other tokens' x{peak.resid_norm_others / start.resid_norm_others:.1f}){reached}."
    ]


def _massive(layers: pd.DataFrame, lifetimes: pd.DataFrame) -> list[str]:
    blocks = layers[layers["layer"] >= 0]
    top = _row(blocks, blocks["max_abs"].idxmax())
    place = (
        f"largest |h| = {top.max_abs:.3g}, {top.max_over_median:.3g} times the median, after block {top.layer} at "
        f"position {top.top_position}, channel {top.top_channel}"
    )
    if lifetimes.empty:
        return [f"No massive activation by either criterion ({place})."]
    out = []
    for criterion, bound in (("absolute", "|h| > 100"), ("relative", "|h| > 1000 x median")):
        chosen = lifetimes[lifetimes["criterion"] == criterion]
        if chosen.empty:
            out.append(f"none by {bound}")
            continue
        row = chosen.sort_values("n_sequences", ascending=False).iloc[0]
        channels = sorted(chosen[chosen["position"] == row.position]["channel"].unique().tolist())
        where = f"channel{'s' if len(channels) > 1 else ''} {', '.join(map(str, channels[:4]))}"
        span = (
            f"after block {row.appears} only"
            if row.appears == row.leaves_after
            else f"after blocks {row.appears} to {row.leaves_after}"
        )
        out.append(f"by {bound} at position {row.position}, {where}, {span}, in {row.n_sequences} sequences")
    return [f"Massive activations: {'; '.join(out)} ({place})."]


def _virtual(heads: pd.DataFrame) -> list[str]:
    out = []
    if len(heads) and (heads["missing_mass"] > 0.01).any():
        top = _row(heads, heads["missing_mass"].idxmax())
        out.append(
            f"Virtual sink: learned sink logits take {heads['missing_mass'].mean():.2f} of the attention on "
            f"average, at most {top.missing_mass:.2f} ({_name(top)}); that mass reaches no key and is not in the "
            "sink rates."
        )
    if len(heads) and heads["gate"].notna().any():
        low = _row(heads, heads["gate"].idxmin())
        out.append(
            f"Output gates pass {heads['gate'].mean():.2f} of the heads' output on average, least in {_name(low)} "
            f"({low.gate:.2f})."
        )
    return out


def _secondary(table: pd.DataFrame) -> list[str]:
    """Only where there are some: most models and short texts have none."""
    found = table[table["label"] == "secondary"]
    if found.empty:
        return []
    top = _row(found, found["importance_max"].idxmax())
    return [
        f"Secondary sinks: {len(found)} tokens in {found['sequence'].nunique()} sequences point along the BOS for part "
        f"of its life and are attended to; the strongest is {top.token!r} at position {top.position} of sequence "
        f"{top.sequence}, after blocks {top.first_layer} to {top.last_layer}, importance {top.importance_max:.2f}."
    ]


def _domains(table: pd.DataFrame) -> list[str]:
    """Where position 0 is a sink, domain by domain, and the head that differs most."""
    names = list(dict.fromkeys(table["domain"]))
    if len(names) < 2:
        return []
    low, high = table["importance_first_difference_low"], table["importance_first_difference_high"]
    if low.isna().all():
        return ["The domains cannot be compared: an interval needs at least 5 sequences of each."]
    differing = table[(low > 0) | (high < 0)]
    counts = [f"{int(group['is_sink_first'].sum())} on {name}" for name, group in table.groupby("domain", sort=False)]
    n_heads, n_differing = (len(rows[["layer", "head"]].drop_duplicates()) for rows in (table, differing))
    sentence = (
        f"By domain: position 0 is a sink for {', '.join(counts)} of {n_heads} heads, and {n_differing} give it more "
        "attention on one than on the rest (95 % intervals; 5 % of the heads would by chance)"
    )
    if not n_differing:
        return [f"{sentence}."]
    top = _row(differing, differing["importance_first_difference"].idxmax())
    rest = "the rest" if len(names) > 2 else next(name for name in names if name != top.domain)
    difference = top.importance_first_difference
    return [
        f"{sentence}; most {_name(top)}: importance {top.importance_first:.2f} on {top.domain}, "
        f"{top.importance_first - difference:.2f} on {rest} (difference {difference:.2f} "
        f"[{top.importance_first_difference_low:.2f}, {top.importance_first_difference_high:.2f}])."
    ]


def _row(frame: pd.DataFrame, label: Any) -> Any:
    """One row, untyped: its fields are read by name."""
    return frame.loc[label]


def _what(tokens: pd.DataFrame, position: int) -> str:
    """The token that stands there, if it is the same in every sequence."""
    there = tokens[tokens["position"] == position]
    names = there["token"].unique()
    if len(names) != 1:
        return ""
    kind = ", the BOS" if there["is_bos"].all() else ""
    return f" ({names[0]!r}{kind})"


def _name(row: Any) -> str:
    return f"L{int(row['layer'])}H{int(row['head'])}"


def _list(group: pd.DataFrame, most: int = 6) -> str:
    ordered = group.sort_values(["sink_rate", "importance"], ascending=False)
    names = [_name(row) for _, row in ordered.head(most).iterrows()]
    rest = len(group) - len(names)
    return ", ".join(names) + (f" and {rest} more" if rest > 0 else "")


def _span(values: pd.Series) -> str:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"
