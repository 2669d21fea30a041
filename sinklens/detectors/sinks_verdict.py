"""Attention sinks in words."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sinklens.detectors.sink_ranking import by_importance
from sinklens.detectors.wording import head_list, heads_at, layer_runs, strongest_of, token_at
from sinklens.wording import several


def describe_sinks(heads: pd.DataFrame, tokens: pd.DataFrame, settings: Mapping[str, Any]) -> list[str]:
    """Which positions are sinks, for which heads and in which layers; or that there is none, and how near it comes.

    Heads whose importance is NaN (an overflow in half precision) are counted and named, and are in no other number.
    """
    if heads.empty:
        return ["Attention sinks are not applicable: no layer of this model has softmax attention."]
    known, lost = heads[heads["importance"].notna()], heads[heads["importance"].isna()]
    if known.empty:
        return [f"No verdict on attention sinks: all {several(len(heads), 'head')} gave NaN."]
    found = known[known["is_sink"].astype(bool)]
    out = [_none(known, settings["eps"])] if found.empty else _positions(known, found, tokens, settings["eps"])
    if not found.empty:
        out.append(_layers(known, found))
    if len(lost):
        names = head_list(lost.sort_values(["layer", "head"]))
        out.append(f"{len(lost)} of {several(len(heads), 'head')} gave NaN and are in no other count here: {names}.")
    return out


def _positions(known: pd.DataFrame, found: pd.DataFrame, tokens: pd.DataFrame, eps: float) -> list[str]:
    out = []
    groups: list[tuple[Any, pd.DataFrame]] = list(found.groupby("sink_position"))
    for position, group in sorted(groups, key=lambda item: (-len(item[1]), item[0])):
        best = strongest_of(group)
        top, verb = best.iloc[0], "gives" if len(group) == 1 else "give"
        named, share = head_list(by_importance(group)), f"{len(group)} of {several(len(known), 'head')}"
        out.append(
            f"Position {position}{token_at(tokens, int(position))} is an attention sink: {share} ({named}) {verb} it "
            f"more than {eps} of their attention in at least half of the sequences, and at least twice what uniform "
            f"attention would. Strongest: {head_list(best)}, importance {top.importance:.3f}, "
            f"sink rate {top.sink_rate:.2f}, {top.ratio:.1f} times uniform attention."
        )
    return out


def _layers(known: pd.DataFrame, found: pd.DataFrame) -> str:
    """Sink-free layers in the middle of a model are a finding of their own."""
    having = set(found["layer"].astype(int))
    without = set(known["layer"].astype(int)) - having
    if not without:
        return f"By layer: sink heads in every layer with attention, {layer_runs(having)}."
    return f"By layer: sink heads in {layer_runs(having)}, none in {layer_runs(without)}."


def _none(known: pd.DataFrame, eps: float) -> str:
    first, rate = known["importance_first"].max(), known["sink_rate"].max()
    nearest = known[known["importance_first"] == first].sort_values(["layer", "head"])
    positions = known[known["sink_rate"] == rate]["sink_position"].astype(int)
    highest = f"{rate:.2f}"
    if rate > 0:
        shared = f" at position {positions.iloc[0]}" if positions.nunique() == 1 else ""
        highest += f" ({heads_at(known, 'sink_rate', rate)}{shared})"
    return (
        f"No attention sink: no head gives any one key position more than {eps} of its attention in half of the "
        f"sequences and at least twice what uniform attention would. Position 0 receives at most {first:.3f} "
        f"({head_list(nearest)}, {(nearest['importance_first'] / nearest['null_first']).max():.1f} times uniform "
        f"attention); the highest sink rate anywhere is {highest}."
    )
