"""Which tokens after position 0 are sinks and massive, in words."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sinklens.detectors.token_types import sink_heads_needed
from sinklens.wording import are, several

LEAST = 3
LIFT = 2.0
FLAGGED = 0.5


def describe_token_types(types: pd.DataFrame, n_heads: int) -> list[str]:
    """The token that is most often a sink away from position 0, and the one that is most often massive."""
    named = types[(types["by"] == "token") & (types["occurrence"] != "start")]
    classes = types[(types["by"] == "class") & (types["occurrence"] != "start")]
    sentences = []
    if n_heads and classes["n_judged"].sum() > 0:
        sentences.append(_sinks(named, classes, n_heads))
    tokens = int(classes["n_tokens"].sum())
    for column, bound in (("absolute", "|h| > 100"), ("ratio", "|h| > 1000 x median")):
        total = int(classes[f"n_massive_{column}"].sum())
        # what is true of most tokens tells none of them apart
        if 0 < total < FLAGGED * tokens:
            sentences += _massive(named, column, bound, total, tokens)
    return sentences


def _sinks(named: pd.DataFrame, classes: pd.DataFrame, n_heads: int) -> str:
    least, total = sink_heads_needed(n_heads), int(classes["n_sinks"].sum())
    judged = int(classes["n_judged"].sum())
    needed = f"{several(least, 'head')} or more (5 % of {n_heads})"
    if total == 0:
        return f"After position 0, none of {several(judged, 'token')} is a sink for {needed}."
    head = f"After position 0, {total} of {several(judged, 'token')} {are(total)} a sink for {needed}"
    top = _top(named, "n_sinks", "sink_share")
    if top is None:
        return f"{head}; no token stands out among them."
    occurrence = (
        f"the {top['occurrence']} {top['name']!r} of a sequence"
        if top["occurrence"] == "first"
        else (f"{top['name']!r} when it comes again")
    )
    return (
        f"{head}: {int(top['n_sinks'])} of them are {occurrence}, which is {100 * top['token_share']:.2g} % of the "
        f"tokens; {int(top['n_sinks'])} of {int(top['n_judged'])} such tokens are, and their median is "
        f"{top['sink_heads_median']:.3g} heads."
    )


def _massive(named: pd.DataFrame, column: str, bound: str, total: int, tokens: int) -> list[str]:
    top = _top(named, f"n_massive_{column}", f"massive_{column}_share")
    if top is None:
        return []
    occurrence = "first" if top["occurrence"] == "first" else "later"
    return [
        f"After position 0, {total} of {several(tokens, 'token')} {are(total)} massive by {bound}: "
        f"{int(top[f'n_massive_{column}'])} of them are {top['name']!r} ({occurrence} occurrences), which is "
        f"{100 * top['token_share']:.2g} % of the tokens."
    ]


def _top(named: pd.DataFrame, count: str, share: str) -> Mapping[Any, Any] | None:
    """The group with the most, if there are some of it and it is over-represented."""
    chosen = named[(named[count] >= LEAST) & (named[share] >= LIFT * named["token_share"])]
    if chosen.empty:
        return None
    ordered = chosen.sort_values([count, "n_tokens", "name", "occurrence"], ascending=[False, True, True, True])
    top: Mapping[Any, Any] = ordered.iloc[0].to_dict()
    return top
