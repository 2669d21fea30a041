"""sinklens: attention sinks, value-state drains, residual peaks and massive activations of transformers, measured.

The names below are loaded on first use, so that ``import sinklens`` and ``sinklens --help`` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinklens.errors import SinkLensError
    from sinklens.models import TokenBatch, load, tokenize
    from sinklens.passes.corpus import builtin_corpus
    from sinklens.results.result import open_result as open
    from sinklens.studies.ablation.entry import sweep
    from sinklens.studies.ablation.result import Sweep
    from sinklens.studies.census.result import Census
    from sinklens.studies.census.run import scan

_HOMES = {
    "Census": "sinklens.studies",
    "SinkLensError": "sinklens.errors",
    "Sweep": "sinklens.studies",
    "TokenBatch": "sinklens.models",
    "builtin_corpus": "sinklens.passes.corpus",
    "load": "sinklens.models",
    "open": "sinklens.results.result:open_result",
    "scan": "sinklens.studies",
    "sweep": "sinklens.studies",
    "tokenize": "sinklens.models",
}
_ROOMS = (
    "attention",
    "capture",
    "detectors",
    "errors",
    "evidence",
    "interventions",
    "lab",
    "models",
    "plots",
    "results",
    "studies",
)

__all__ = [
    "Census",
    "SinkLensError",
    "Sweep",
    "TokenBatch",
    "builtin_corpus",
    "load",
    "open",
    "scan",
    "sweep",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    """Load a public name, or a room of the package, on first use."""
    if name in _HOMES:
        module, _, own = _HOMES[name].partition(":")
        return getattr(import_module(module), own or name)
    if name in _ROOMS:
        return import_module(f"sinklens.{name}")
    raise AttributeError(f"module 'sinklens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
