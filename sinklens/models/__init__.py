"""Where a model comes from: built-ins, local directories and hub ids; its architecture; its tokens."""

from typing import TYPE_CHECKING

from sinklens.lazy import load_lazily

if TYPE_CHECKING:
    from sinklens.models.as_bridge import as_bridge
    from sinklens.models.builtin import builtin_models
    from sinklens.models.load import load
    from sinklens.models.real import real_model_path
    from sinklens.models.tokens import TokenBatch, tokenize

__all__ = [
    "TokenBatch",
    "as_bridge",
    "builtin_models",
    "load",
    "real_model_path",
    "tokenize",
]

load_lazily(__name__)
