"""The report's sections, in order: each answers one question from the census."""

from sinklens.app.sections.attention import maps, positions, sinks, threshold, token_strips
from sinklens.app.sections.directions import compression, decorrelation, secondary
from sinklens.app.sections.reference import definitions, layer_status, provenance
from sinklens.app.sections.source import Downloads, Section
from sinklens.app.sections.states import massive, norms, peaks
from sinklens.app.sections.summary import header, measured
from sinklens.app.sections.token_types import domains, token_types

SECTIONS = (
    Section("measured", "Measured", "What was measured", measured),
    Section("sinks", "Sinks", "Which heads have a sink", sinks, needs=("heads", "sinks")),
    Section("positions", "Positions", "Where attention goes", positions, needs=("sinks",)),
    Section("threshold", "Threshold", "Does the threshold matter?", threshold, needs=("eps_sweep",)),
    Section("domains", "Domains", "Do heads differ between domains?", domains, needs=("domains",), optional=True),
    Section("norms", "Norms", "Value and residual norms", norms),
    Section("peaks", "Peaks", "Residual peaks", peaks, needs=("residual_norms",)),
    Section("massive", "Massive", "Massive activations", massive, needs=("massive",)),
    Section("types", "Token types", "Which tokens are sinks", token_types, needs=("token_types",), optional=True),
    Section("secondary", "Secondary", "Secondary sinks", secondary, needs=("secondary_sinks",), optional=True),
    Section("direction", "Direction", "Alignment with position 0", decorrelation, ("decorrelation",), optional=True),
    Section("compression", "Compression", "Compression", compression, needs=("compression",), optional=True),
    Section("maps", "Maps", "Attention maps", maps),
    Section("tokens", "Tokens", "The tokens", token_strips),
    Section("layers", "Layers", "Layer by layer", layer_status),
    Section("definitions", "Definitions", "Definitions", definitions),
    Section("provenance", "Provenance", "Provenance", provenance),
)

__all__ = ["SECTIONS", "Downloads", "Section", "header"]
