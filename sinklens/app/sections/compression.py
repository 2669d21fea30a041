"""Section on representation compression."""

from typing import TYPE_CHECKING

from sinklens import plots
from sinklens.app.page import figure
from sinklens.app.sections.source import Downloads

if TYPE_CHECKING:
    from sinklens.studies.census.result import Census


def compression(census: "Census", downloads: Downloads) -> str:
    """Matrix entropy by layer, with and without position 0."""
    fig = figure(plots.compression(census), "fig-compression")
    return (
        "<p>A valley in the entropy of all tokens that is not there without position 0 is the length of one row, and "
        f"no compression of the others.</p>\n{fig}{downloads.button('compression')}"
    )
