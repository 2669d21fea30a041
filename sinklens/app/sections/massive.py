"""Sections on massive activations: which channels have them and in which layers, and which layer writes the largest."""

from typing import TYPE_CHECKING, Final

import pandas as pd

from sinklens import plots
from sinklens.app.page import figure, html_table
from sinklens.app.sections.source import Downloads
from sinklens.plots.massive_table import strongest_channels

if TYPE_CHECKING:
    from sinklens.studies.census.result import Census

_SHOWN: Final = 10
_KIND_COLUMNS: Final = {
    "criterion": "criterion",
    "channel": "channel",
    "bucket": "place",
    "layers": "layers",
    "n_sequences": "sequences, at most",
    "n_of": "of",
    "peak": "largest |h|",
    "peak_layer": "in layer",
    "contrast": "× other tokens",
}
_KINDS: Final = (
    "By channel, those in most sequences first ({n} of {total} shown): after which layers at least half of the "
    "sequences have an entry of the kind that most other tokens do not have"
)
_ENTRY_COLUMNS: Final = {
    "channel": "channel",
    "layers": "massive after layers",
    "sequence": "sequence",
    "position": "position",
    "token": "token",
    "layer": "largest after layer",
    "value": "value",
    "median": "median |h|",
    "ratio": "× median",
    "absolute": "> 100",
    "relative": "> 1000 × median",
}
_LIFETIME_COLUMNS: Final = {
    "criterion": "criterion",
    "position": "position",
    "channel": "channel",
    "appears": "appears after layer",
    "leaves_after": "last seen after layer",
    "n_sequences": "sequences",
}


def massive(census: "Census", downloads: Downloads) -> str:
    """By layer, by channel with the layers of its life, and the largest entry of each channel."""
    table = census.tables["massive"]
    body = figure(plots.massive_activations(census), "fig-massive")
    if table.empty:
        return body + '<p class="na">Not applicable: no hidden state was recorded.</p>'
    body += _kinds(census)
    if "channel_profile" in census.tables and not census.tables["channel_profile"].empty:
        body += f"<p>The first sequence:</p>\n{figure(plots.massive_map(census), 'fig-massive-map')}"
    rows = strongest_channels(table, census.tables.get("massive_episodes"), _SHOWN)
    peaks = ["embed" if layer < 0 else str(layer) for layer in rows["layer"]]
    caption = f"The largest entry of each channel, the {len(rows)} largest, each in the layer where it is largest"
    body += html_table(rows.assign(layer=peaks), _ENTRY_COLUMNS, caption=caption, words=("layers",), tokens=("token",))
    return body + downloads.button("massive")


def life(census: "Census", downloads: Downloads) -> str:
    """Which half of which layer writes position 0's largest entry, and which takes it away."""
    return (
        "<p>Bars are what attention and MLP of each layer add to the entry; the line is what it is then.</p>\n"
        f"{figure(plots.lifecycle(census), 'fig-life')}{downloads.button('lifecycle')}"
    )


def massive_kinds(episodes: pd.DataFrame) -> pd.DataFrame:
    """One row per criterion, place and channel of token-specific episodes: all its spans of layers together.

    ``layers`` lists the spans, ``n_sequences`` is the largest number of sequences of any, ``peak`` the largest
    magnitude, with its ``peak_layer`` and ``contrast``. Those in most sequences come first, larger ones before
    smaller, criterion by criterion.
    """
    rows = []
    specific = episodes[~episodes["everywhere"].astype(bool)]
    for (criterion, bucket, channel), spans in specific.groupby(["criterion", "bucket", "channel"], sort=False):
        spans = spans.sort_values("appears")
        ends = zip(spans["appears"], spans["leaves_after"], strict=True)
        top = spans.sort_values("peak", ascending=False, kind="stable").iloc[0]
        rows.append(
            {
                "criterion": criterion,
                "bucket": bucket,
                "channel": channel,
                "layers": ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ends),
                "n_sequences": int(spans["n_sequences"].max()),
                **{name: top[name] for name in ("n_of", "peak", "peak_layer", "contrast")},
            }
        )
    table = pd.DataFrame(rows, columns=list(_KIND_COLUMNS))
    return table.sort_values(
        ["criterion", "n_sequences", "peak", "channel"], ascending=[True, False, False, True], ignore_index=True
    )


def _kinds(census: "Census") -> str:
    """A census made before there were episodes has lifetimes."""
    old, found = census.tables.get("massive_lifetimes"), census.tables.get("massive_episodes")
    if found is None:
        if old is None or old.empty:
            return ""
        most = old.sort_values("n_sequences", ascending=False, kind="stable").head(_SHOWN)
        caption = f"How long massive activations live, those in most sequences first ({len(most)} of {len(old)} shown)"
        return html_table(most, _LIFETIME_COLUMNS, caption=caption, words=("criterion",))
    kinds = massive_kinds(found)
    if kinds.empty:
        return ""
    shown = kinds.groupby("criterion", sort=False).head(_SHOWN)
    caption = _KINDS.format(n=len(shown), total=len(kinds))
    return html_table(shown, _KIND_COLUMNS, caption=caption, words=("criterion", "bucket", "layers"))
