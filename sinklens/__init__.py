"""sinklens: attention sinks, value-state drains, residual peaks and massive activations of transformers, measured.

The names below are loaded on first use, so that ``import sinklens`` and ``sinklens --help`` stay quick.
"""

from typing import TYPE_CHECKING

from sinklens.lazy import load_lazily

if TYPE_CHECKING:
    from sinklens.errors import SinkLensError
    from sinklens.models import TokenBatch, load, tokenize
    from sinklens.passes.corpus import builtin_corpus
    from sinklens.results.result import open_result as open
    from sinklens.studies.ablation.entry import sweep
    from sinklens.studies.ablation.result import Sweep
    from sinklens.studies.census.result import Census
    from sinklens.studies.census.run import scan

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

load_lazily(__name__)
