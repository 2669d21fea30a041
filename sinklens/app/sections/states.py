"""Sections on values and residual states: norms, peaks, massive activations."""

from typing import Final

from sinklens import plots
from sinklens.app.page import figure, html_table
from sinklens.app.sections.source import CensusLike, Downloads

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


def norms(census: CensusLike, downloads: Downloads) -> str:
    """Value and residual norms of one sequence."""
    profile = census.tables["profile"]
    figures = [figure(plots.norms_by_token(profile, value=value), f"fig-{value}") for value in _NORMS]
    return (
        "<h2>Value and residual norms</h2>\n<p>The first sequence. A drained value is a dark cell in the "
        "value norms: the token is attended to and adds little. A residual peak is a bright cell in the "
        f"residual norms.</p>\n{''.join(figures)}{downloads.button('profile')}"
    )


def peaks(census: CensusLike, downloads: Downloads) -> str:
    """Residual peaks by layer."""
    fig = plots.residual_peaks(census.tables["layers"])
    return f"<h2>Residual peaks</h2>\n{figure(fig, 'fig-peaks')}{downloads.button('layers')}"


def massive(census: CensusLike, downloads: Downloads) -> str:
    """Massive activations: figure and the strongest twenty."""
    table = census.tables["massive"]
    fig = plots.massive_activations(census.tables["layers"])
    body = f"<h2>Massive activations</h2>\n{figure(fig, 'fig-massive')}"
    if table.empty:
        return body + '<p class="na">Not applicable: no hidden state was recorded.</p>'
    rows = plots.strongest_activations(table, 20)
    layers = ["embed" if layer < 0 else str(layer) for layer in rows["layer"]]
    caption = (
        f"The {len(rows)} largest entries; each token and channel once, at the layer where it is largest"
    )
    body += html_table(
        rows.assign(layer=layers),
        _MASSIVE_COLUMNS,
        caption=caption,
        formats={"value": ",.5g", "ratio": ",.5g"},
        tokens=("token",),
    )
    return body + downloads.button("massive")
