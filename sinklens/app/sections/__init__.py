"""The report's sections, in order: each takes the census and writes the HTML that answers one question."""

from collections.abc import Callable
from typing import Final

from sinklens.app.sections.attention import maps, positions, sinks, threshold, token_strips
from sinklens.app.sections.reference import definitions, layer_status, provenance
from sinklens.app.sections.source import CensusLike, Downloads
from sinklens.app.sections.states import massive, norms, peaks
from sinklens.app.sections.summary import header, measured

SECTIONS: Final[tuple[tuple[str, str, Callable[[CensusLike, Downloads], str]], ...]] = (
    ("measured", "Measured", measured),
    ("sinks", "Sinks", sinks),
    ("positions", "Positions", positions),
    ("threshold", "Threshold", threshold),
    ("norms", "Norms", norms),
    ("peaks", "Peaks", peaks),
    ("massive", "Massive", massive),
    ("maps", "Maps", maps),
    ("tokens", "Tokens", token_strips),
    ("layers", "Layers", layer_status),
    ("definitions", "Definitions", definitions),
    ("provenance", "Provenance", provenance),
)
"""Anchor, label in the navigation, writer."""

__all__ = ["SECTIONS", "CensusLike", "Downloads", "header"]
