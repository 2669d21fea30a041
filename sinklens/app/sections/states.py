"""Sections on values and residual states: norms, peaks, massive activations."""

from typing import TYPE_CHECKING, Final

from sinklens import plots
from sinklens.app.page import figure, html_table
from sinklens.app.sections.source import Downloads
from sinklens.plots.massive_table import strongest_activations

if TYPE_CHECKING:
    from sinklens.studies.census.result import Census

_NORMS: Final = ("value_norm", "wo_value_norm", "resid_norm")

_MASSIVE_COLUMNS: Final = {
    "sequence": "sequence",
    "position": "position",
    "token": "token",
    "channel": "channel",
    "layer": "layer",
    "value": "value",
    "median": "median |h|",
    "ratio": "× median",
    "absolute": "> 100",
    "relative": "> 1000 × median",
    "n_layers": "layers listed",
}

_EPISODE_COLUMNS: Final = {
    "criterion": "criterion",
    "bucket": "place",
    "channel": "channel",
    "appears": "appears after layer",
    "leaves_after": "last seen after layer",
    "n_sequences": "sequences, most",
    "n_sequences_least": "fewest",
    "peak": "largest |h|",
    "peak_layer": "after layer",
    "token_share": "other tokens that meet it",
    "contrast": "× other tokens",
}
_EPISODES: Final = (
    "Episodes of token-specific massive activations, the largest by each criterion ({n} of {total} shown): after which "
    "layers at least half of the sequences have them"
)
_SHOWN = 8
_PEAK_COLUMNS: Final = {
    "layer": "after layer",
    "position": "position",
    "token": "token",
    "n_largest": "sequences where it is the largest",
    "n_peaks": "sequences where it is a peak",
    "n_of": "of sequences",
    "peak_ratio": "× median norm",
}
_PEAKS: Final = "Tokens that are peaks in most sequences, each at the layer where most often ({n} of {total} shown)"
_LIFETIME_COLUMNS: Final = {
    "criterion": "criterion",
    "position": "position",
    "channel": "channel",
    "appears": "appears after layer",
    "leaves_after": "last seen after layer",
    "n_sequences": "sequences",
}
_LIFETIMES: Final = "How long massive activations live (the first 20)"


def norms(census: "Census", downloads: Downloads) -> str:
    """Value and residual norms of one sequence."""
    profile = census.tables["profile"]
    if profile.empty:
        return '<p class="na">Not measured: no detector of this scan looked at values or residual states.</p>'
    figures = [figure(plots.norms_by_token(census, value=value), f"fig-{value}") for value in _NORMS]
    return (
        "<p>The first sequence. A drained value is a dark cell in the "
        "value norms: the token is attended to and adds little. A residual peak is a bright cell in the "
        f"residual norms.</p>\n{''.join(figures)}{downloads.button('profile')}"
    )


def peaks(census: "Census", downloads: Downloads) -> str:
    """Residual peaks by layer, and which tokens have them."""
    fig = plots.residual_peaks(census)
    body, found = figure(fig, "fig-peaks"), census.tables.get("peaks")  # a census made before it has no such table
    if found is not None and (found["n_peaks"] > 0).any():
        order = ["n_peaks", "n_largest", "peak_ratio", "layer", "position", "token"]
        ordered = found.sort_values(order, ascending=[False, False, False, True, True, True])
        each = ordered[ordered["n_peaks"] > 0].drop_duplicates(["position", "token"])
        caption = _PEAKS.format(n=min(_SHOWN, len(each)), total=len(each))
        body += html_table(each.head(_SHOWN), _PEAK_COLUMNS, caption=caption, tokens=("token",))
    return f"{body}{downloads.button('layers')}"


def massive(census: "Census", downloads: Downloads) -> str:
    """Massive activations: figure and the strongest twenty."""
    table = census.tables["massive"]
    fig = plots.massive_activations(census)
    body = f"{figure(fig, 'fig-massive')}"
    if table.empty:
        return body + '<p class="na">Not applicable: no hidden state was recorded.</p>'
    rows = strongest_activations(table, 20)
    layers = ["embed" if layer < 0 else str(layer) for layer in rows["layer"]]
    caption = f"The {len(rows)} largest entries; each token and channel once, at the layer where it is largest"
    body += html_table(
        rows.assign(layer=layers),
        _MASSIVE_COLUMNS,
        caption=caption,
        tokens=("token",),
    )
    return body + _episodes(census) + downloads.button("massive")


def _episodes(census: "Census") -> str:
    """The largest token-specific episodes; a census made before there were any has lifetimes."""
    old, found = census.tables.get("massive_lifetimes"), census.tables.get("massive_episodes")
    if found is None:
        if old is None or old.empty:
            return ""
        return html_table(old.head(20), _LIFETIME_COLUMNS, caption=_LIFETIMES, words=("criterion",))
    specific = found[~found["everywhere"].astype(bool)]
    if specific.empty:
        return ""
    shown = specific.groupby("criterion", sort=False).head(_SHOWN)
    caption = _EPISODES.format(n=len(shown), total=len(specific))
    return html_table(shown, _EPISODE_COLUMNS, caption=caption, words=("criterion", "bucket"))
