"""The report's sections in the order of a paper: each answers one question from the census."""

from sinklens.app.sections.attention import maps, positions, roles, sinks, threshold
from sinklens.app.sections.directions import compression, decorrelation, secondary
from sinklens.app.sections.found import header, section_of
from sinklens.app.sections.massive import life, massive
from sinklens.app.sections.reference import absent, definitions, layer_status, measured, provenance
from sinklens.app.sections.source import Downloads, Section
from sinklens.app.sections.states import drains, peaks, states
from sinklens.app.sections.token_types import domains, token_strips, token_types

_MORE = 'sinklens.scan(model, detectors=[..., "compression"])'

SECTIONS: tuple[Section, ...] = (
    Section("sinks", "Sinks", "Which heads have a sink", sinks, needs=("heads", "sinks")),
    Section("positions", "Positions", "Where attention goes", positions, needs=("sinks",)),
    Section("threshold", "Threshold", "Does the threshold matter?", threshold, needs=("eps_sweep",)),
    Section("domains", "Domains", "Do heads differ between domains?", domains, needs=("domains",), optional=True,
            made_by="sinklens.scan(model, {name: texts, ...})"),
    Section("types", "Token types", "Which tokens are sinks", token_types, needs=("token_types",), optional=True),
    Section("tokens", "Tokens", "The tokens", token_strips),
    Section("drains", "Drains", "Value-state drains", drains, needs=("heads",)),
    Section("peaks", "Peaks", "Residual peaks", peaks, needs=("residual_norms",)),
    Section("massive", "Massive", "Massive activations", massive, needs=("massive",)),
    Section("life", "Life", "Which layer writes the largest entry", life, needs=("lifecycle",)),
    Section("secondary", "Secondary", "Secondary sinks", secondary, needs=("secondary_sinks",), optional=True),
    Section("direction", "Direction", "Alignment with position 0", decorrelation, ("decorrelation",), optional=True),
    Section("compression", "Compression", "Compression", compression, needs=("compression",), optional=True,
            made_by=_MORE),
    Section("roles", "Roles", "How heads attend", roles, needs=("heads",)),
    Section("maps", "Maps", "Attention maps", maps),
    Section("measured", "Measured", "What was measured", measured),
    Section("absent", "Not measured", "What was not measured", lambda census, _: absent(census, SECTIONS)),
    Section("norms", "Norms", "Norms of states, keys and values", states),
    Section("layers", "Layers", "Layer by layer", layer_status),
    Section("definitions", "Definitions", "Definitions", definitions),
    Section("provenance", "Provenance", "Provenance", provenance),
)  # fmt: skip

__all__ = ["SECTIONS", "Downloads", "Section", "header", "section_of"]
