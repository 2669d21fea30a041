"""Massive activations in words."""

import pandas as pd

from sinklens.experiments.verdict.wording import row_at


def describe_massive(layers: pd.DataFrame, lifetimes: pd.DataFrame) -> list[str]:
    """Where the massive activations are and how long they live."""
    blocks = layers[layers["layer"] >= 0]
    top = row_at(blocks, blocks["max_abs"].idxmax())
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
