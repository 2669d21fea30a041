"""Massive activations in words."""

import pandas as pd

from sinklens.detectors.wording import row_at
from sinklens.wording import several

CRITERIA = (("absolute", "|h| > 100"), ("relative", "|h| > 1000 x median"))
MOST_CHANNELS = 3
MOST_KINDS = 2
"""A kind takes half a sentence, with each of its lives."""
_PLACES = {"start": "at position 0", "others": "at later positions"}


def describe_massive(layers: pd.DataFrame, episodes: pd.DataFrame) -> list[str]:
    """Which channels, the largest first, after which layers; token-specific ones apart from those large everywhere."""
    blocks = layers[(layers["layer"] >= 0) & layers["max_abs"].notna()].sort_values("layer")
    if blocks.empty:
        return []
    top = row_at(blocks, blocks["max_abs"].idxmax())
    ratio = "" if pd.isna(top.max_over_median) else f"{top.max_over_median:.3g} times the median, "
    place = (
        f"A sequence's largest |h| is {top.max_abs:.3g} on average, {ratio}after layer {int(top.layer)}, most often at "
        f"position {int(top.top_position)}, channel {int(top.top_channel)}"
    )
    if episodes.empty:
        return [f"No massive activation in at least half of the sequences, by either criterion. {place}."]
    sentences = []
    for criterion, bound in CRITERIA:
        chosen = episodes[episodes["criterion"] == criterion]
        specific = chosen[~chosen["everywhere"]]
        if chosen.empty:
            sentences.append(f"Massive activations by {bound}: in no channel.")
            continue
        if specific.empty:
            sentences.append(f"Massive activations by {bound}: none is token-specific.")
        else:
            sentences.append(f"Massive activations by {bound}: {_kinds(specific)}.")
        if chosen["everywhere"].any():
            sentences.append(_outlier_channels(chosen[chosen["everywhere"]], bound))
    return [*sentences, f"{place}."]


def _kinds(specific: pd.DataFrame) -> str:
    """``channel 507 at position 0, after layers ...``, the largest kinds first."""
    peaks = specific.groupby(["bucket", "channel"])["peak"].max()
    kinds = peaks.sort_values(ascending=False, kind="stable").index.tolist()  # equal ones by place and channel
    parts = []
    for bucket, channel in kinds[:MOST_KINDS]:
        kind = specific[(specific["bucket"] == bucket) & (specific["channel"] == channel)].sort_values("appears")
        spans = " and ".join(_span(episode) for episode in kind.itertuples())
        parts.append(f"channel {channel} {_PLACES[bucket]} {spans}")
    rest = len(kinds) - len(parts)
    return "; ".join(parts) + (f"; and {several(rest, 'smaller kind')}" if rest else "")


def _span(episode: object) -> str:
    first, last = episode.appears, episode.leaves_after  # type: ignore[attr-defined]
    where = f"after layer {first}" if first == last else f"after layers {first} to {last}"
    least, most, of = episode.n_sequences_least, episode.n_sequences, episode.n_of  # type: ignore[attr-defined]
    count = f"{most}" if least == most else f"{least} to {most}"
    return f"{where} (up to {episode.peak:.3g}, in {count} of {several(of, 'sequence')})"  # type: ignore[attr-defined]


def _outlier_channels(everywhere: pd.DataFrame, bound: str) -> str:
    """Channels, not tokens: the largest first."""
    sizes = everywhere.groupby("channel")["peak"].max()
    ordered = sizes.reset_index().sort_values(["peak", "channel"], ascending=[False, True])["channel"].tolist()
    named = ", ".join(str(channel) for channel in ordered[:MOST_CHANNELS])
    rest = f" and {len(ordered) - MOST_CHANNELS} more" if len(ordered) > MOST_CHANNELS else ""
    return (
        f"Not token-specific by {bound}: channel{'s' if len(ordered) > 1 else ''} {named}{rest}, where at least half "
        "of the tokens after position 0 meet it after some layer."
    )
