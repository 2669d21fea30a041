"""Attention sinks in words."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sinklens.experiments.verdict.wording import head_list, name_of, row_at, token_at


def describe_sinks(heads: pd.DataFrame, tokens: pd.DataFrame, settings: Mapping[str, Any]) -> list[str]:
    """Which positions are sinks, for which heads; or that there is none, and how near it comes."""
    if heads.empty:
        return ["Attention sinks are not applicable: no block of this model has softmax attention."]
    eps = settings["eps"]
    found = heads[heads["is_sink"]]
    if found.empty:
        best = row_at(heads, heads["importance_first"].idxmax())
        top = row_at(heads, heads["sink_rate"].idxmax())
        return [
            f"No attention sink: no head gives any one key position more than {eps} of its attention in half of the "
            f"sequences. Position 0 receives at most {best.importance_first:.3f} ({name_of(best)}, "
            f"{best.importance_first / best.null_first:.1f} times uniform attention); the highest sink rate anywhere "
            f"is {top.sink_rate:.2f} ({name_of(top)} at position {top.sink_position})."
        ]
    out = []
    groups: list[tuple[Any, pd.DataFrame]] = list(found.groupby("sink_position"))
    for position, group in sorted(groups, key=lambda item: -len(item[1])):
        best = row_at(group, group["sink_rate"].idxmax())
        verb = "gives" if len(group) == 1 else "give"
        out.append(
            f"Position {position}{token_at(tokens, int(position))} is an attention sink: {len(group)} of {len(heads)} "
            f"heads ({head_list(group)}) {verb} it more than {eps} of their attention in at least half of the "
            "sequences. "
            f"Strongest: {name_of(best)}, sink rate {best.sink_rate:.2f}, importance {best.importance:.2f}, "
            f"{best.ratio:.1f} times uniform attention."
        )
    return out
