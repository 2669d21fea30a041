"""Why heads sink, in words."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sinklens.wording import several

SHOWN, SHOWN_CHANNELS = 3, 4


def cause_words(heads: pd.DataFrame, donors: pd.DataFrame, meta: Mapping[str, Any]) -> list[str]:
    """All heads together, then the strongest ones, then what the sink's values do."""
    position = int(meta["settings"]["position"])
    if heads.empty:
        return [f"No head was explained: none attends to position {position}."]
    return [
        _together(heads, position),
        *(_head(row, position) for row in heads.head(SHOWN).itertuples()),
        *_kinds(heads),
        *_donors(donors),
    ]


def _together(heads: pd.DataFrame, position: int) -> str:
    top = heads["channel"].value_counts()
    channel = min(top[top == top.max()].index)
    half, one = int((heads["mass_lost"] >= 0.5).sum()), int((heads["one_lost"] >= 0.5).sum())
    most = float(heads["random_lost_most"].max())
    beside = "" if most != most else f"; random sets of as many channels take at most {_percent(most)}"
    return (
        f"{several(len(heads), 'head')} {'looks' if len(heads) == 1 else 'look'} at position {position}: in "
        f"{int(top.max())} of {len(heads)} channel {channel} of the keys has the largest share of the margin. Without "
        f"its largest channel {one} of {len(heads)} lose{'s' if one == 1 else ''} at least half of the attention to "
        f"it, without up to {several(int(heads['n_channels'].max()), 'channel')} {half}{beside}."
    )


def _head(row: Any, position: int) -> str:
    text = (
        f"{row.name} looks at position {position} because channel {row.channel} of the keys gives "
        f"{row.channel_share:+z.1f} of the {row.margin:+z.1f} logits by which it prefers it; of all writers to the "
        f"keys {row.component} has the largest share ({row.component_share:+z.1f})"
    )
    which = f"channels {row.channels}" if row.n_channels > 1 else "that channel"
    which = f"its {row.n_channels} largest channels" if row.n_channels > SHOWN_CHANNELS else which
    text += f"; without {which} its attention there falls from {row.mass:.2f} to {row.mass_without:.2f}"
    if row.n_random and row.random_lost == row.random_lost:
        text += (
            f" ({several(row.n_random, 'random set')} of as many: {_percent(row.random_lost)} lost on average, p "
            f"= {row.p:.2g})"
        )
    return f"{text}."


def _kinds(heads: pd.DataFrame) -> list[str]:
    known = heads.dropna(subset=["kind"])
    if known.empty:
        return []
    counts = [(kind, int((known["kind"] == kind).sum())) for kind in ("no-op", "broadcast", "mixed")]
    named = ", ".join(f"{count} {kind}" for kind, count in counts if count)
    rest = len(heads) - len(known)
    return [
        f"Of {several(len(heads), 'sink')}, by the size of what their value writes and the rank of the head's output: "
        f"{named}"
        + (
            f"; {several(rest, 'head')} never {'rests' if rest == 1 else 'rest'} on it in nine tenths of their queries"
            if rest
            else ""
        )
        + "."
    ]


def _donors(donors: pd.DataFrame) -> list[str]:
    sink = donors[donors["place"] == "sink"]
    if sink.empty:
        return []
    costs = []
    for edit, word in (("zero", "zero"), ("donor", "that of another text"), ("ordinary", "an ordinary token's")):
        rows = sink[sink["edit"] == edit]["delta_loss"].dropna()
        if len(rows):
            costs.append(f"{word} {rows.mean():+z.3f}")
    control = donors[(donors["place"] == "control") & (donors["edit"] == "zero")]["delta_loss"].dropna()
    beside = f" (zero at other positions {control.mean():+z.3f})" if len(control) else ""
    return [
        f"The value at the sink of one KV head set to {', to '.join(costs)} nats a token, mean of "
        f"{several(sink.groupby(['layer', 'kv_head']).ngroups, 'KV head')}{beside}."
    ]


def _percent(share: float) -> str:
    return f"{100 * share:z.0f} %"
