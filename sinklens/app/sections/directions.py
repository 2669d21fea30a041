"""Sections on where residual states point: secondary sinks, how aligned the others are, and compression."""

from typing import TYPE_CHECKING, Final

from sinklens import plots
from sinklens.app.page import figure, html_table
from sinklens.app.sections.source import Downloads

if TYPE_CHECKING:
    from sinklens.studies.census.result import Census

_COLUMNS: Final = {
    "sequence": "sequence",
    "position": "position",
    "token": "token",
    "label": "label",
    "first_layer": "first layer",
    "last_layer": "last layer",
    "life": "layers",
    "share": "share of the BOS's",
    "cosine": "cosine",
    "importance_max": "importance, at most",
}
_ORDER: Final = ("secondary", "bos_sink", "aligned, not a sink", "aligned, not judged", "noise")


def secondary(census: "Census", downloads: Downloads) -> str:
    """Tokens that turn into the BOS's direction in the middle of the network."""
    table = census.tables["secondary_sinks"]
    body = (
        "<p>A secondary sink points along the BOS for part of its life, and is attended to there. Tokens that point "
        "along it without being attended to are named apart.</p>\n"
        + figure(plots.secondary_sinks(census), "fig-secondary")
    )
    if table.empty:
        return body
    rank = {label: place for place, label in enumerate(_ORDER)}
    ordered = table.assign(rank=table["label"].map(rank)).sort_values(
        ["rank", "importance_max"], ascending=[True, False], kind="stable"
    )
    shown = ordered.head(20)
    caption = f"{len(shown)} of {len(table)} tokens, secondary sinks first"
    listing = html_table(shown, _COLUMNS, caption=caption, words=("label",), tokens=("token",))
    return f"{body}{listing}{downloads.button('secondary_sinks')}"


def decorrelation(census: "Census", downloads: Downloads) -> str:
    """How far the other tokens point along position 0."""
    fig = figure(plots.decorrelation(census), "fig-decorrelation")
    return f"{fig}{downloads.button('decorrelation')}"


def compression(census: "Census", downloads: Downloads) -> str:
    """Matrix entropy by layer, with and without position 0."""
    fig = figure(plots.compression(census), "fig-compression")
    return (
        "<p>A valley in the entropy of all tokens that is not there without position 0 is the length of one row, and "
        f"no compression of the others.</p>\n{fig}{downloads.button('compression')}"
    )
